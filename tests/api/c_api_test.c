/* The C API from C: quantize, pack, multiply, and every border. Exit code 0 when all checks hold.
 */
#include <math.h>
#include <nibble/c_api.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;

#define CHECK(condition)                                                              \
  do {                                                                                \
    if (!(condition)) {                                                               \
      fprintf(stderr, "%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #condition, \
              nibble_last_error());                                                   \
      ++failures;                                                                     \
    }                                                                                 \
  } while (0)

enum { kN = 48, kK = 160, kM = 5 };

static nibble_matrix matrix(void* data, int64_t rows, int64_t cols) {
  nibble_matrix m;
  memset(&m, 0, sizeof(m));
  m.struct_size = sizeof(m);
  m.data = data;
  m.dtype = NIBBLE_F32;
  m.rows = rows;
  m.cols = cols;
  return m;
}

static void multiplies_as_the_decoded_weight_does(const char* format) {
  static float w[kN * kK], decoded[kN * kK], x[kM * kK], y[kM * kN], bias[kN];
  unsigned state = 1;
  for (int i = 0; i < kN * kK; ++i)
    w[i] = (float)((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1.0f;
  for (int i = 0; i < kM * kK; ++i)
    x[i] = (float)((state = state * 1664525u + 1013904223u) >> 8) / 8388608.0f - 1.0f;
  for (int i = 0; i < kN; ++i) bias[i] = (float)i;

  nibble_matrix weight = matrix(w, kN, kK), vx = matrix(x, kM, kK), vy = matrix(y, kM, kN);
  nibble_quantized* quantized = NULL;
  nibble_packed* packed = NULL;
  nibble_linear* linear = NULL;
  CHECK(nibble_quantize(&weight, format, 1, &quantized) == NIBBLE_OK);
  int64_t n = 0, k = 0;
  CHECK(nibble_quantized_shape(quantized, &n, &k) == NIBBLE_OK && n == kN && k == kK);
  CHECK(nibble_quantized_bytes(quantized) >= kN * kK / 2);
  CHECK(nibble_dequantize(quantized, decoded) == NIBBLE_OK);
  CHECK(nibble_pack(quantized, NULL, 1, &packed) == NIBBLE_OK);
  CHECK(nibble_packed_bytes(packed) >= nibble_quantized_bytes(quantized));
  CHECK(nibble_linear_create(packed, NULL, &linear) == NIBBLE_OK);
  nibble_quantized_free(quantized);
  nibble_packed_free(packed); /* the linear keeps the weight */

  nibble_epilogue epilogue;
  memset(&epilogue, 0, sizeof(epilogue));
  epilogue.struct_size = sizeof(epilogue);
  epilogue.alpha = 1;
  epilogue.bias = bias;
  CHECK(nibble_linear_run(linear, &vx, &vy, &epilogue) == NIBBLE_OK);
  for (int i = 0; i < kM; ++i) {
    for (int j = 0; j < kN; ++j) {
      double sum = bias[j], squares = 0, magnitude = fabs(sum);
      for (int c = 0; c < kK; ++c) {
        const double product = (double)x[i * kK + c] * (double)decoded[j * kK + c];
        sum += product;
        squares += product * product;
        magnitude += fabs(product);
      }
      /* docs/numerics.md: 4 u (sqrt(K sum of squares) + sum of magnitudes / 8) + u |y| */
      const double u = 5.9604644775390625e-08;
      const double tolerance = 4 * u * (sqrt(kK * squares) + magnitude / 8) + 4 * u * fabs(sum);
      CHECK(fabs((double)y[i * kN + j] - sum) <= tolerance);
    }
  }
  nibble_linear_free(linear);
}

static void errors_have_a_code_and_a_sentence(void) {
  static float w[4 * 32];
  nibble_matrix weight = matrix(w, 4, 32);
  nibble_quantized* quantized = NULL;
  CHECK(nibble_quantize(&weight, "int5-g32", 1, &quantized) == NIBBLE_INVALID_ARGUMENT);
  CHECK(strstr(nibble_last_error(), "int5") != NULL);
  CHECK(nibble_quantize(NULL, "int4-g32", 1, &quantized) == NIBBLE_INVALID_ARGUMENT);
  CHECK(strstr(nibble_last_error(), "weight is NULL") != NULL);
  CHECK(nibble_quantize(&weight, "int4-g32", 1, NULL) == NIBBLE_INVALID_ARGUMENT);
  nibble_matrix small = weight;
  small.struct_size = 8;
  CHECK(nibble_quantize(&small, "int4-g32", 1, &quantized) == NIBBLE_INVALID_ARGUMENT);
  CHECK(strstr(nibble_last_error(), "struct_size = 8") != NULL);
  w[37] = NAN;
  CHECK(nibble_quantize(&weight, "int4-g32", 1, &quantized) == NIBBLE_INVALID_ARGUMENT);
  CHECK(quantized == NULL);
  w[37] = 0;
  CHECK(nibble_quantize(&weight, "int4-g32", 1, &quantized) == NIBBLE_OK);
  nibble_packed* packed = NULL;
  CHECK(nibble_pack(quantized, "no_layout", 1, &packed) == NIBBLE_INVALID_ARGUMENT);
  CHECK(nibble_pack(quantized, NULL, 1, &packed) == NIBBLE_OK);
  nibble_linear_options options;
  memset(&options, 0, sizeof(options));
  options.struct_size = sizeof(options);
  options.compute = 9;
  nibble_linear* linear = NULL;
  CHECK(nibble_linear_create(packed, &options, &linear) == NIBBLE_INVALID_ARGUMENT);
  options.compute = NIBBLE_INT8;
  options.threads = 2;
  CHECK(nibble_linear_create(packed, &options, &linear) == NIBBLE_OK);
  nibble_matrix x = matrix(w, 4, 31), y = matrix(w, 4, 4);
  CHECK(nibble_linear_run(linear, &x, &y, NULL) == NIBBLE_INVALID_ARGUMENT);
  CHECK(strstr(nibble_last_error(), "x is [4, 31]") != NULL);
  nibble_linear_free(linear);
  nibble_packed_free(packed);
  nibble_quantized_free(quantized);
  nibble_quantized_free(NULL);
  nibble_packed_free(NULL);
  nibble_linear_free(NULL);
}

static void doctor_fits_any_capacity(void) {
  const size_t needed = nibble_doctor(NULL, 0);
  CHECK(needed > 20);
  char* text = malloc(needed);
  CHECK(nibble_doctor(text, needed) == needed && strlen(text) == needed - 1);
  char small[8];
  CHECK(nibble_doctor(small, sizeof(small)) == needed && strlen(small) == 7);
  free(text);
}

int main(void) {
  CHECK(strcmp(nibble_version(), "0.1.0") == 0);
  multiplies_as_the_decoded_weight_does("int4-g32");
  multiplies_as_the_decoded_weight_does("nvfp4");
  multiplies_as_the_decoded_weight_does("uint4-g16:f32");
  errors_have_a_code_and_a_sentence();
  doctor_fits_any_capacity();
  if (failures == 0) puts("c api: all checks hold");
  return failures == 0 ? 0 : 1;
}
