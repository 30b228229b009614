// The C contract between the CUDA kernels (csrc/) and the Rust wrappers (src/cuda/).
//
// A launcher takes one params struct and a stream, enqueues, and returns a status: 0 or a cudaError_t value, or
// one of the negative codes below. It never allocates, synchronises, prints, exits or throws, and it checks
// nothing that its Rust wrapper has checked. Every pointer is device memory and is commented with
// `[shape] dtype`; strides are in elements; sizes that multiply are 64-bit.
//
// No CUDA header is needed to read this one: src/cuda/bindings.rs is generated from it.
#ifndef MINISGL_KERNELS_H
#define MINISGL_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// ---- Common ----------------------------------------------------------------------------------------------

// A CUstream, which is a cudaStream_t.
typedef struct msgl_stream_s *msgl_stream;

// Statuses that are not a cudaError_t.
#define MSGL_ERROR_UNSUPPORTED (-1)  // no kernel for these sizes or dtypes

// An entry of slots or seq_rows that is not used.
#define MSGL_PADDING 0xffffffffu
// Most log probabilities reported with a sampled token.
#define MSGL_MAX_LOGPROBS 20
// Ways in which msgl_skinny can compute a product.
#define MSGL_SKINNY_VARIANTS 6

typedef enum msgl_dtype { MSGL_BF16 = 0, MSGL_F16 = 1, MSGL_F32 = 2 } msgl_dtype;

// Name and text of a status, as static strings.
const char *msgl_status_name(int status);
const char *msgl_status_text(int status);

// ---- Embedding -------------------------------------------------------------------------------------------

typedef struct msgl_embedding_params {
  void *out;                    // [num_tokens, cols] dtype
  const void *table;            // [table_rows, cols] dtype
  const int32_t *token_ids;     // [num_tokens] i32; -1 - row reads last_tokens[row]
  const uint32_t *last_tokens;  // [max_rows] u32
  uint32_t num_tokens;
  uint32_t cols;
  uint32_t table_rows;
  uint32_t max_rows;
  msgl_dtype dtype;
} msgl_embedding_params;

int msgl_embedding(const msgl_embedding_params *params, msgl_stream stream);

// ---- RMSNorm ---------------------------------------------------------------------------------------------

typedef struct msgl_rms_norm_params {
  void *out;           // [rows, cols] dtype
  void *residual;      // [rows, cols] dtype, gets += x rounded to dtype; null: plain RMSNorm of x
  const void *x;       // [rows, cols] dtype
  const void *weight;  // [cols] dtype
  uint32_t rows;
  uint32_t cols;
  float eps;
  msgl_dtype dtype;
} msgl_rms_norm_params;

int msgl_rms_norm(const msgl_rms_norm_params *params, msgl_stream stream);

// ---- Residual sum ----------------------------------------------------------------------------------------

typedef struct msgl_add_params {
  void *residual;  // [num_elems] dtype, gets += x rounded to dtype
  const void *x;   // [num_elems] dtype
  uint64_t num_elems;
  msgl_dtype dtype;
} msgl_add_params;

int msgl_add(const msgl_add_params *params, msgl_stream stream);

// ---- Query and key norm, rotary embedding, store to the paged KV -----------------------------------------

typedef struct msgl_rope_store_kv_params {
  void *qkv;                  // [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim] dtype
  const void *q_norm;         // [head_dim] dtype, or null
  const void *k_norm;         // [head_dim] dtype, or null
  const float *rope;          // [max_position, head_dim] f32: cosines, then sines
  const uint32_t *positions;  // [num_tokens] u32
  const uint32_t *slots;      // [num_tokens] u32, or MSGL_PADDING
  void *k;                    // [num_slots, num_kv_heads * head_dim] dtype
  void *v;                    // [num_slots, num_kv_heads * head_dim] dtype
  uint64_t num_slots;
  uint32_t num_tokens;
  uint32_t num_heads;
  uint32_t num_kv_heads;
  uint32_t head_dim;
  uint32_t max_position;
  float eps;
  msgl_dtype dtype;
} msgl_rope_store_kv_params;

int msgl_rope_store_kv(const msgl_rope_store_kv_params *params, msgl_stream stream);

// ---- Gated activation ------------------------------------------------------------------------------------

typedef enum msgl_activation { MSGL_SILU = 0, MSGL_GELU = 1, MSGL_GELU_TANH = 2 } msgl_activation;

typedef struct msgl_act_mul_params {
  void *out;            // [rows, ffn] dtype
  const void *gate_up;  // [rows, 2 * ffn] dtype
  uint32_t rows;
  uint32_t ffn;
  msgl_activation activation;
  msgl_dtype dtype;
} msgl_act_mul_params;

int msgl_act_mul(const msgl_act_mul_params *params, msgl_stream stream);

// ---- Linear layers with few tokens -------------------------------------------------------------------------

// out = epilogue(prologue(x) * weight^T), in this order: RMSNorm of x, product, bias, activation, sum.
typedef struct msgl_skinny_params {
  void *out;           // [rows, n] out_dtype, or [rows, n / 2] with gates
  const void *x;       // [rows, k] dtype
  const void *weight;  // [n, k] dtype; with gates the n / 2 rows of the gates, then those of the ups
  const void *bias;    // [n] dtype, or null
  const void *norm;    // [k] dtype: x goes through RMSNorm first; or null
  uint32_t rows;
  uint32_t n;
  uint32_t k;
  float eps;           // of the norm
  uint32_t is_gated;   // out = activation(gate) * up
  uint32_t adds_to_out;  // out += instead of out =; out_dtype is dtype then
  uint32_t num_sms;      // of the chip
  uint32_t variant;      // below MSGL_SKINNY_VARIANTS: which kernel, cut up how
  msgl_activation activation;
  msgl_dtype out_dtype;  // dtype or MSGL_F32
  msgl_dtype dtype;      // MSGL_BF16 or MSGL_F16
} msgl_skinny_params;

// Whether the variant computes these sizes and dtypes on a chip of compute capability `sm` (10 * major + minor).
int msgl_skinny_is_supported(const msgl_skinny_params *params, uint32_t sm);
int msgl_skinny(const msgl_skinny_params *params, msgl_stream stream);

// ---- Linear layers with many tokens ------------------------------------------------------------------------

// out = x * weight^T, perhaps with the gated activation of that.
typedef struct msgl_gemm_params {
  void *out;             // [rows, n] dtype, or [rows, n / 2] with gates
  const void *x;         // [rows, k] dtype
  const void *weight;    // [n, k] dtype; with gates the n / 2 rows of the gates, then those of the ups
  uint32_t rows;
  uint32_t n;
  uint32_t k;
  uint32_t is_gated;     // out = activation(gate) * up
  uint32_t num_sms;      // of the chip
  uint32_t tile_cols;    // of the product, not of the output: 256 or 224
  msgl_activation activation;
  msgl_dtype dtype;      // MSGL_BF16 or MSGL_F16
} msgl_gemm_params;

// Whether there is a kernel for these sizes and dtypes on a chip of compute capability `sm` (10 * major + minor), which
// is the current device.
int msgl_gemm_is_supported(const msgl_gemm_params *params, uint32_t sm);
int msgl_gemm(const msgl_gemm_params *params, msgl_stream stream);

// ---- Rows: gather, broadcast, convert, noise -------------------------------------------------------------

typedef struct msgl_gather_samples_params {
  void *out;                      // [num_samples, cols] dtype
  const void *x;                  // [x_rows, cols] dtype
  const uint32_t *sample_tokens;  // [num_samples] u32
  uint32_t num_samples;
  uint32_t x_rows;
  uint32_t cols;
  msgl_dtype dtype;
} msgl_gather_samples_params;

int msgl_gather_samples(const msgl_gather_samples_params *params, msgl_stream stream);

typedef struct msgl_broadcast_row_params {
  void *out;        // [rows, cols] out_dtype
  const void *row;  // [cols] row_dtype
  uint32_t rows;
  uint32_t cols;
  msgl_dtype out_dtype;
  msgl_dtype row_dtype;
} msgl_broadcast_row_params;

int msgl_broadcast_row(const msgl_broadcast_row_params *params, msgl_stream stream);

typedef struct msgl_convert_params {
  void *out;        // [num_elems] out_dtype
  const void *src;  // [num_elems] src_dtype; may be pinned host memory
  uint64_t num_elems;
  msgl_dtype out_dtype;
  msgl_dtype src_dtype;
} msgl_convert_params;

int msgl_convert(const msgl_convert_params *params, msgl_stream stream);

typedef struct msgl_fill_random_params {
  void *out;  // [num_elems] dtype
  uint64_t num_elems;
  uint64_t seed;
  float mean;
  float std;
  msgl_dtype dtype;
} msgl_fill_random_params;

int msgl_fill_random(const msgl_fill_random_params *params, msgl_stream stream);

// ---- Start and end of a step -----------------------------------------------------------------------------

typedef struct msgl_begin_step_params {
  void *inputs;          // [inputs_bytes] bytes: the step's packed sections, 16-byte aligned
  const void *staging;   // [inputs_bytes + updates] bytes: what was uploaded
  uint32_t *page_table;  // [max_rows, max_pages] u32
  const uint32_t *page_updates;  // [num_page_updates, 3] u32: row, idx, page; no two of one (row, idx)
  uint64_t inputs_bytes;         // a multiple of 16
  uint32_t num_page_updates;
  uint32_t max_rows;
  uint32_t max_pages;
} msgl_begin_step_params;

int msgl_begin_step(const msgl_begin_step_params *params, msgl_stream stream);

typedef struct msgl_reset_counts_params {
  uint16_t *token_counts;   // [max_rows, vocab] u16: bit 15 is 'in the prompt', bits 0..14 count
  const uint32_t *resets;   // [num_resets, 4] u32: row, num_prompt, first token, number of tokens
  const uint32_t *tokens;   // [sum of lengths] u32
  uint32_t num_resets;
  uint32_t max_rows;
  uint32_t vocab;
  uint32_t max_tokens;      // the largest number of tokens of one reset
} msgl_reset_counts_params;

int msgl_reset_counts(const msgl_reset_counts_params *params, msgl_stream stream);

typedef struct msgl_copy_pages_params {
  void *k;                // [num_pages, page_bytes] bytes
  void *v;                // [num_pages, page_bytes] bytes
  const uint32_t *pairs;  // [num_pairs, 2] u32: from, to; no page is both a target and anything else
  uint64_t page_bytes;
  uint32_t num_pairs;
  uint32_t num_pages;
} msgl_copy_pages_params;

int msgl_copy_pages(const msgl_copy_pages_params *params, msgl_stream stream);

typedef struct msgl_read_back_params {
  uint32_t *dst;                 // pinned host memory: tokens, then, where asked for, logprobs, top tokens, top logprobs
  const uint32_t *tokens;        // [num_samples] u32
  const uint32_t *logprobs;      // [num_samples] f32, or null
  const uint32_t *top_tokens;    // [num_samples, MSGL_MAX_LOGPROBS] u32, or null
  const uint32_t *top_logprobs;  // [num_samples, MSGL_MAX_LOGPROBS] f32, or null
  uint32_t num_samples;
} msgl_read_back_params;

int msgl_read_back(const msgl_read_back_params *params, msgl_stream stream);

// ---- Sampling --------------------------------------------------------------------------------------------

// How to draw one token: `SampleParams` of the Rust side, which says what each field means.
typedef struct msgl_sample_spec {
  uint32_t seq_row;
  uint32_t position;
  uint64_t seed;
  float temperature;
  int32_t top_k;
  float top_p;
  float min_p;
  float presence_penalty;
  float frequency_penalty;
  float repetition_penalty;
  int32_t num_logprobs;
} msgl_sample_spec;

typedef struct msgl_sample_params {
  const void *logits;                 // [num_samples, vocab] dtype
  const msgl_sample_spec *samples;  // [num_samples]
  uint32_t *last_tokens;              // [max_rows] u32
  uint16_t *token_counts;             // [max_rows, vocab] u16
  uint32_t *tokens;                   // [num_samples] u32
  float *logprobs;                    // [num_samples] f32
  uint32_t *top_tokens;               // [num_samples, MSGL_MAX_LOGPROBS] u32
  float *top_logprobs;                // [num_samples, MSGL_MAX_LOGPROBS] f32
  void *scratch;                      // [num_samples * msgl_sample_scratch_bytes()] bytes
  uint32_t num_samples;
  uint32_t vocab;
  uint32_t max_rows;
  msgl_dtype dtype;
} msgl_sample_params;

// Bytes of scratch for each sample.
size_t msgl_sample_scratch_bytes(void);
int msgl_sample(const msgl_sample_params *params, msgl_stream stream);

// ---- Attention -------------------------------------------------------------------------------------------

// A step's attention is planned once (msgl_attention_plan) and then run in every layer: prefill for the sequences
// with more than `decode_rows` query rows, decode for the others. A query row is one head of one query token; a
// sequence has q_len * num_heads / num_kv_heads of them for each KV head.
typedef enum msgl_attention_kernel {
  MSGL_ATTENTION_FA = 0,      // prefill: tensor cores, any page size
  MSGL_ATTENTION_FI = 1,      // decode: split KV, tensor cores, any page size
  MSGL_ATTENTION_TRTLLM = 2,  // decode: whole pages of 16, 32 or 64 tokens by bulk copies, sm_90; prefill: as FA
  MSGL_ATTENTION_PLAIN = 3,   // both, without a plan: FMA, any dtype and head_dim up to 512
  MSGL_ATTENTION_WGMMA = 4    // prefill: tensor cores by warpgroups, any page size, sm_90a
} msgl_attention_kernel;

// What the layout of a plan depends on. The same for msgl_attention_plan and every launch that reads the plan.
typedef struct msgl_attention_sizes {
  uint32_t num_heads;
  uint32_t num_kv_heads;
  uint32_t head_dim;
  uint32_t window;         // positions that a query sees, its own included; 0: all
  uint32_t max_seqs;       // sequences that the plan has room for
  uint32_t max_tiles;      // prefill tiles (of all KV heads together 1) that the plan has room for
  uint32_t tile_rows;      // query rows of a prefill tile
  uint32_t decode_rows;    // most query rows of a sequence that decode takes; 0xffffffff: all
  uint32_t decode_ctas;    // CTAs of decode that the plan has room for
  uint32_t heads_per_job;  // KV heads that one decode CTA reads together
  uint32_t grid_ctas;      // CTAs of decode's grid, at most decode_ctas: its work is cut among them
  uint32_t cluster_ctas;   // CTAs of a decode cluster: 1, 2, 4 or 8; 0: work is always cut into ranges
} msgl_attention_sizes;

typedef struct msgl_attention_plan_params {
  const uint32_t *cu_q_lens;  // [num_seqs + 1] u32
  const uint32_t *kv_lens;    // [num_seqs] u32
  const uint32_t *seq_rows;   // [num_seqs] u32
  void *plan;                 // [msgl_attention_plan_bytes(sizes)] bytes, 256-byte aligned, zeros before the first use
  msgl_attention_sizes sizes;
  uint32_t num_seqs;
} msgl_attention_plan_params;

typedef struct msgl_attention_params {
  void *out;                   // [num_tokens, num_heads, head_dim] dtype
  const void *qkv;             // [num_tokens, qkv_stride] dtype: queries in the first num_heads * head_dim columns
  const void *k;               // [num_slots, num_kv_heads, head_dim] dtype
  const void *v;               // [num_slots, num_kv_heads, head_dim] dtype
  const uint32_t *page_table;  // [max_rows, max_pages] u32
  const uint32_t *cu_q_lens;   // [num_seqs + 1] u32; plain only
  const uint32_t *kv_lens;     // [num_seqs] u32; plain only
  const uint32_t *seq_rows;    // [num_seqs] u32; plain only
  void *plan;                  // [msgl_attention_plan_bytes(sizes)] bytes: read, and scratch of decode
  int64_t qkv_stride;          // elements between two tokens of qkv
  uint64_t num_slots;
  msgl_attention_sizes sizes;
  uint32_t num_tokens;
  uint32_t num_seqs;
  uint32_t num_tiles;  // prefill: at least as many tiles as the plan holds; those in excess cost nothing
  // Decode, in a recorded step: nothing but the kernel just before writes K and V of this layer, and only the rows of
  // this step's positions.
  uint32_t reads_early;
  uint32_t page_size;
  uint32_t max_pages;
  float scale;
  msgl_dtype dtype;
  msgl_attention_kernel kernel;
} msgl_attention_params;

// Bytes of a plan: its lists, and decode's scratch for KV ranges that were split.
size_t msgl_attention_plan_bytes(const msgl_attention_sizes *sizes);
// Query rows of a tile of a prefill kernel, or 0 where there is none for this dtype, head_dim and chip
// (`sm` is 10 * major + minor, of the current device).
uint32_t msgl_attention_tile_rows(msgl_attention_kernel kernel, msgl_dtype dtype, uint32_t head_dim, uint32_t sm);
// KV heads that a CTA of a decode kernel reads together.
uint32_t msgl_attention_heads_per_job(msgl_attention_kernel kernel, uint32_t head_dim, uint32_t num_kv_heads);
// CTAs of a decode kernel that one SM holds, or 0 where there is none for this dtype, head_dim and chip.
uint32_t msgl_attention_ctas_per_sm(msgl_attention_kernel kernel, msgl_dtype dtype, uint32_t head_dim,
                                    uint32_t num_kv_heads, uint32_t sm);
// Clusters of this many CTAs of the FI decode kernel that the current device holds at once, or 0 where it has none.
uint32_t msgl_attention_clusters(uint32_t head_dim, uint32_t sm, uint32_t cluster_ctas);

int msgl_attention_plan(const msgl_attention_plan_params *params, msgl_stream stream);
int msgl_attention_prefill(const msgl_attention_params *params, msgl_stream stream);
int msgl_attention_decode(const msgl_attention_params *params, msgl_stream stream);
int msgl_attention_plain(const msgl_attention_params *params, msgl_stream stream);

// rope_store_kv and decode in one launch, for a step of at most one token a sequence: bf16 and f16, head_dim 64 and
// 128, sm_90, in clusters of at least 2 CTAs. Both parts name the same tensors. It reads no plan.
typedef struct msgl_rope_attention_params {
  msgl_rope_store_kv_params rope;
  msgl_attention_params attention;
} msgl_rope_attention_params;

// Whether there is such a kernel, as 1 or 0.
uint32_t msgl_has_rope_attention(msgl_dtype dtype, uint32_t head_dim, uint32_t sm);
int msgl_rope_attention(const msgl_rope_attention_params *params, msgl_stream stream);

#ifdef __cplusplus
}
#endif

#endif  // MINISGL_KERNELS_H
