//! The suites of mini-sgl.
//!
//! [`ops`] is the one registry of op cases: property tests, benchmarks and sanitizer runs of every backend take
//! their cases from it. [`harness`] runs requests through an engine, [`models`] makes small random models, [`report`]
//! prints measurements beside the limits of the machine, [`host_time`] what the host does meanwhile, [`roofline`] draws them, [`tap`] looks at logits between the
//! engine and the device.
#![forbid(unsafe_code)]

pub mod harness;
pub mod host_time;
pub mod models;
pub mod ops;
pub mod report;
pub mod roofline;
pub mod tap;
