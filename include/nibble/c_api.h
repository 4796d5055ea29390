/* Nibble for C and for every language that can call C: version, doctor, quantize, pack, linear.
 *
 * Every function that can fail returns a nibble_status; nibble_last_error() holds the sentence of
 * the calling thread's last failure. Handles are opaque and freed by their *_free, which takes
 * NULL. Structs begin with struct_size = sizeof(the struct), so that later versions may grow them;
 * their enumerations are int32_t, so that a wrong value is an error and not undefined.
 * No exception crosses this border. All functions may be called from several threads; a handle may
 * be used by several threads at once unless its function says otherwise. */
#ifndef NIBBLE_C_API_H_
#define NIBBLE_C_API_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum nibble_status {
  NIBBLE_OK = 0,
  NIBBLE_INVALID_ARGUMENT = 1,
  NIBBLE_UNSUPPORTED = 2,
  NIBBLE_CORRUPT_FILE = 3,
  NIBBLE_IO = 4,
  NIBBLE_OUT_OF_MEMORY = 5,
  NIBBLE_CUDA = 6,
  NIBBLE_INTERNAL = 7
} nibble_status;

typedef enum nibble_dtype { NIBBLE_F32 = 0, NIBBLE_F16 = 1, NIBBLE_BF16 = 2 } nibble_dtype;

typedef enum nibble_compute {
  NIBBLE_EXACT = 0, /* activations are never rounded */
  NIBBLE_INT8 = 1   /* activations rounded to int8, one scale per row and 32 columns */
} nibble_compute;

typedef enum nibble_activation {
  NIBBLE_NO_ACTIVATION = 0,
  NIBBLE_RELU = 1,
  NIBBLE_SILU = 2,
  NIBBLE_GELU_TANH = 3,
  NIBBLE_GELU_ERF = 4
} nibble_activation;

typedef struct nibble_quantized nibble_quantized; /* codes and scales in canonical order */
typedef struct nibble_packed nibble_packed;       /* the same in a layout that kernels read */
typedef struct nibble_linear nibble_linear;       /* y = x W^T */

/* "0.1.0"; static. */
const char* nibble_version(void);

/* The last failure's sentence on this thread ("" before the first one); valid until the thread's
 * next call into the library. */
const char* nibble_last_error(void);

/* A few lines of text: processor, instruction sets, threads, GPUs, kernels of this build. Writes at
 * most `capacity` bytes including the final NUL and returns the bytes needed; `text` may be NULL
 * when capacity is 0. */
size_t nibble_doctor(char* text, size_t capacity);

/* Row-major matrix; rows lie `stride_bytes` apart (0: dense). */
typedef struct nibble_matrix {
  size_t struct_size;
  void* data;    /* read only where the function says "in" */
  int32_t dtype; /* a nibble_dtype */
  int64_t rows, cols;
  int64_t stride_bytes;
} nibble_matrix;

/* Rounds a weight [n, k] (in, dense) to `format` ("int4-g128", "nvfp4", "mxfp4", ...; the grammar
 * is in docs/formats.md) on `threads` threads (0: all). Fails with NIBBLE_INVALID_ARGUMENT for an
 * unknown format or a weight that is NaN or infinite. */
nibble_status nibble_quantize(const nibble_matrix* weight, const char* format, int threads,
                              nibble_quantized** out);
void nibble_quantized_free(nibble_quantized* quantized);
/* Sizes of the original matrix; either pointer may be NULL. */
nibble_status nibble_quantized_shape(const nibble_quantized* quantized, int64_t* n, int64_t* k);
/* Bytes of codes, scales and zeros; 0 for NULL. */
int64_t nibble_quantized_bytes(const nibble_quantized* quantized);
/* Writes the decoded weight, f32 [n, k] row-major: the library's specification of the format. */
nibble_status nibble_dequantize(const nibble_quantized* quantized, float* out);

/* Packs into `layout`; NULL: the one this CPU prefers. */
nibble_status nibble_pack(const nibble_quantized* quantized, const char* layout, int threads,
                          nibble_packed** out);
void nibble_packed_free(nibble_packed* packed);
int64_t nibble_packed_bytes(const nibble_packed* packed);

typedef struct nibble_linear_options {
  size_t struct_size;
  int32_t compute; /* a nibble_compute */
  int threads;     /* 0: all cores, in a pool shared by the process */
} nibble_linear_options;

/* The linear shares the packed weight: `packed` may be freed afterwards. `options` may be NULL. */
nibble_status nibble_linear_create(const nibble_packed* packed,
                                   const nibble_linear_options* options, nibble_linear** out);
void nibble_linear_free(nibble_linear* linear);

/* y = activation(alpha * x W^T + bias) + beta * c + residual. */
typedef struct nibble_epilogue {
  size_t struct_size;
  float alpha; /* 1 for a plain product */
  float beta;
  const nibble_matrix* c;        /* y's shape and dtype; may be y's memory; NULL when beta is 0 */
  const nibble_matrix* residual; /* y's shape and dtype; NULL: none */
  const void* bias;              /* [n] in bias_dtype; NULL: none */
  int32_t bias_dtype;            /* a nibble_dtype */
  int32_t activation;            /* a nibble_activation */
} nibble_epilogue;

/* x [m, k] in, y [m, n] out; any of f32, f16, bf16. `epilogue` may be NULL. */
nibble_status nibble_linear_run(const nibble_linear* linear, const nibble_matrix* x,
                                const nibble_matrix* y, const nibble_epilogue* epilogue);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* NIBBLE_C_API_H_ */
