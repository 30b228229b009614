//! Models: what a directory holds, and the decoder.
