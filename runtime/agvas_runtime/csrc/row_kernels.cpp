// Compiled with -DAGVAS_ISA=baseline, =avx2, =avx512 and the compiler's options for each.
#include "row_kernels.h"

#include <algorithm>
#include <cstring>

namespace agvas {
namespace AGVAS_ISA {
namespace {

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bits behind the point, halves go to even

// exp of |x| <= 80 to one unit in the last place: 2^k times a polynomial of what is left (Cephes, expf).
inline float exp_bounded(float x) {
  const float shifted = x * 1.44269504088896341f + kRound;
  const float k = shifted - kRound;
  const float r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * (r * r) + r) + 1.0f;
  const int32_t exponent = __builtin_bit_cast(int32_t, shifted) - 0x4B400000;
  return p * __builtin_bit_cast(float, (exponent + 127) << 23);
}

inline float sigmoid(float x) {
  x = x < -80.0f ? -80.0f : x;
  x = x > 80.0f ? 80.0f : x;
  return 1.0f / (1.0f + exp_bounded(-x));
}

void enlarge(const float* __restrict cells, const int32_t* __restrict at, const float* __restrict near, const float* __restrict far,
             int n, float* __restrict out) {
  for (int i = 0; i < n; ++i) out[i] = cells[at[i]] * near[i] + cells[at[i] + 1] * far[i];
}

void add_row(const float* __restrict upper, const float* __restrict lower, float b0, float b1, float share, float row_weight,
             const float* __restrict column_weight, int n, float* __restrict sum) {
  if (column_weight == nullptr) {
    for (int i = 0; i < n; ++i) sum[i] += (upper[i] * b0 + lower[i] * b1) * share;
  } else {
    for (int i = 0; i < n; ++i) sum[i] += (((upper[i] * b0 + lower[i] * b1) * share) * row_weight) * column_weight[i];
  }
}

float fuse(const float* seg, const float* rel, float alpha, float rest, int n, float* out) {
  for (int i = 0; i < n; ++i) {
    const float p = sigmoid(seg[i]) * alpha + sigmoid(rel[i]) * rest;
    out[i] = p < 1.0f ? p : 1.0f;  // the two rounded weights may sum to a hair above one
  }
  float lanes[16] = {};
  int i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) lanes[j] = lanes[j] < out[i + j] ? out[i + j] : lanes[j];
  for (; i < n; ++i) lanes[0] = std::max(lanes[0], out[i]);
  return *std::max_element(lanes, lanes + 16);
}

int first_above(const float* values, float threshold, int begin, int n) {
  int i = begin;
  for (; i + 32 <= n; i += 32) {
    int found = 0;
    for (int j = 0; j < 32; ++j) found |= values[i + j] > threshold;
    if (found) break;
  }
  for (; i < n; ++i)
    if (values[i] > threshold) return i;
  return n;
}

void widen(const uint8_t* __restrict bytes, int n, float* __restrict out) {
  for (int i = 0; i < n; ++i) out[i] = static_cast<float>(bytes[i]);
}

typedef float Float4 __attribute__((vector_size(16)));

inline Float4 load(const float* from) {
  Float4 value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

void shrink_rgb(const float* rgb, const AreaAxis& axis, float* out) {
  const float* weight = axis.weight;
  const int cells = axis.cells, taps = axis.taps;
  const int32_t* const first = axis.first;
  for (int cell = 0; cell < cells; ++cell, weight += taps) {
    const float* const pixel = rgb + 3 * static_cast<int64_t>(first[cell]);
    Float4 sum = {};
    for (int k = 0; k < taps; ++k) sum += load(pixel + 3 * k) * weight[k];
    std::memcpy(out + 4 * cell, &sum, sizeof sum);
  }
}

void shrink_grey(const float* grey, const AreaAxis& axis, float* out) {
  const float* weight = axis.weight;
  const int cells = axis.cells, taps = axis.taps;
  const int32_t* const first = axis.first;
  for (int cell = 0; cell < cells; ++cell, weight += taps) {
    const float* const pixel = grey + first[cell];
    float sum = 0;
    for (int k = 0; k < taps; ++k) sum += pixel[k] * weight[k];
    out[cell] = sum;
  }
}

void add_weighted(const float* __restrict row, float weight, bool fresh, int n, float* __restrict sum) {
  if (fresh) {
    for (int i = 0; i < n; ++i) sum[i] = weight * row[i];
  } else {
    for (int i = 0; i < n; ++i) sum[i] += weight * row[i];
  }
}

void round_to_bytes(const float* __restrict sum, float scale, bool up, int n, uint8_t* __restrict out) {
  if (up) {
    for (int i = 0; i < n; ++i) out[i] = static_cast<uint8_t>(static_cast<int32_t>(sum[i] * scale + 0.5f));
  } else {
    for (int i = 0; i < n; ++i) {
      float value = sum[i] * scale;
      value = value < 255.0f ? value : 255.0f;
      out[i] = static_cast<uint8_t>(__builtin_bit_cast(int32_t, value + kRound));
    }
  }
}

inline uint8_t clip(int value) { return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value); }

constexpr int kBlock = 512;  // pixels; what a block needs stays in the first cache

void interleave(const uint8_t* __restrict r, const uint8_t* __restrict g, const uint8_t* __restrict b, int n, uint8_t* __restrict rgb) {
  for (int i = 0; i < n; ++i) {
    rgb[3 * i] = r[i];
    rgb[3 * i + 1] = g[i];
    rgb[3 * i + 2] = b[i];
  }
}

template <int kLumaStep, int kChromaStep>
void yuv_block(const uint8_t* __restrict luma, const uint8_t* __restrict u, const uint8_t* __restrict v, int n, uint8_t* __restrict rgb) {
  constexpr int kHalf = 1 << 19;
  int32_t offset[3][kBlock];
  uint8_t plane[3][kBlock];
  for (int i = 0; i < (n + 1) / 2; ++i) {
    const int blue = u[kChromaStep * i] - 128, red = v[kChromaStep * i] - 128;
    offset[0][2 * i] = offset[0][2 * i + 1] = kHalf + 1673527 * red;
    offset[1][2 * i] = offset[1][2 * i + 1] = kHalf - 852492 * red - 409993 * blue;
    offset[2][2 * i] = offset[2][2 * i + 1] = kHalf + 2116026 * blue;
  }
  for (int c = 0; c < 3; ++c)
    for (int i = 0; i < n; ++i) plane[c][i] = clip((std::max(0, luma[kLumaStep * i] - 16) * 1220542 + offset[c][i]) >> 20);
  interleave(plane[0], plane[1], plane[2], n, rgb);
}

void nv12_row(const uint8_t* luma, const uint8_t* chroma, int n, uint8_t* rgb) {
  for (int x = 0; x < n; x += kBlock) yuv_block<1, 2>(luma + x, chroma + x, chroma + x + 1, std::min(kBlock, n - x), rgb + 3 * x);
}

void yuyv_row(const uint8_t* pairs, int n, uint8_t* rgb) {
  for (int x = 0; x < n; x += kBlock)
    yuv_block<2, 4>(pairs + 2 * x, pairs + 2 * x + 1, pairs + 2 * x + 3, std::min(kBlock, n - x), rgb + 3 * x);
}

void bayer_row(const uint8_t* up, const uint8_t* here, const uint8_t* down, int first, bool red, int n, uint8_t* rgb) {
  uint8_t own[kBlock], green[kBlock], other[kBlock];
  for (int from = 1; from < n - 1; from += kBlock) {
    const int count = std::min(kBlock, n - 1 - from);
    const uint8_t *const u = up + from, *const h = here + from, *const d = down + from;
    const int parity = (from & 1) ^ first;  // 0: the block begins with the row's own colour
    for (int i = 0; i < count; ++i) {
      const bool is_own = ((i & 1) ^ parity) == 0;
      const int across = h[i - 1] + h[i + 1], along = u[i] + d[i];
      const int corners = u[i - 1] + u[i + 1] + d[i - 1] + d[i + 1];
      own[i] = static_cast<uint8_t>(is_own ? h[i] : (across + 1) >> 1);
      green[i] = static_cast<uint8_t>(is_own ? (across + along + 2) >> 2 : h[i]);
      other[i] = static_cast<uint8_t>(is_own ? (corners + 2) >> 2 : (along + 1) >> 1);
    }
    interleave(red ? own : other, green, red ? other : own, count, rgb + 3 * from);
  }
  std::memcpy(rgb, rgb + 3, 3);
  std::memcpy(rgb + 3 * (n - 1), rgb + 3 * (n - 2), 3);
}

void swap_red_blue(const uint8_t* __restrict bgr, int n, uint8_t* __restrict rgb) {
  for (int i = 0; i < 3 * n; i += 3) {
    rgb[i] = bgr[i + 2];
    rgb[i + 1] = bgr[i + 1];
    rgb[i + 2] = bgr[i];
  }
}

}  // namespace

#define AGVAS_NAME_OF(isa) #isa
#define AGVAS_NAME(isa) AGVAS_NAME_OF(isa)
extern const RowKernels kernels;
const RowKernels kernels = {AGVAS_NAME(AGVAS_ISA), enlarge,        add_row,  fuse,     first_above, widen,        shrink_rgb, shrink_grey,
                            add_weighted,          round_to_bytes, nv12_row, yuyv_row, bayer_row,   swap_red_blue};

}  // namespace AGVAS_ISA
}  // namespace agvas
