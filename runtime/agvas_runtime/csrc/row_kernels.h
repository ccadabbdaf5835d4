// The inner loops, compiled once for each instruction set and chosen when the program runs.
//
// No fused multiply-add and no reordering anywhere: every set gives the same bits, those of OpenCV's loops where it has them. All are
// pure functions of their arguments and thread-safe.
#pragma once

#include <cstdint>

namespace agvas {

// One axis of an antialiased resize: cell d is the weighted sum of `taps` source pixels from `first[d]` on; its weights, of which the last
// ones may be zero, stand in weight[d taps ...].
struct AreaAxis {
  const int32_t* first;
  const float* weight;
  int cells, taps;
};

struct RowKernels {
  const char* name;

  // out[i] = cells[at[i]] near[i] + cells[at[i] + 1] far[i]
  void (*enlarge)(const float* cells, const int32_t* at, const float* near, const float* far, int n, float* out);

  // sum[i] += ((upper[i] b0 + lower[i] b1) share) row_weight column_weight[i]; the weights are left out where column_weight is null.
  void (*add_row)(const float* upper, const float* lower, float b0, float b1, float share, float row_weight, const float* column_weight,
                  int n, float* sum);

  // P of eq. 7 and 8: out = min(alpha sigmoid(seg) + rest sigmoid(rel), 1); returns the highest.
  float (*fuse)(const float* seg, const float* rel, float alpha, float rest, int n, float* out);

  // First i in [begin, n) with values[i] > threshold; n where there is none.
  int (*first_above)(const float* values, float threshold, int begin, int n);

  // Bytes to floats.
  void (*widen)(const uint8_t* bytes, int n, float* out);

  // Weighted sums over one row of RGB: out [cells, 4], the fourth of each is junk. `taps` pixels and a float past the row's end are read,
  // and must be finite.
  void (*shrink_rgb)(const float* rgb, const AreaAxis& axis, float* out);
  // The same of one channel: out [cells].
  void (*shrink_grey)(const float* grey, const AreaAxis& axis, float* out);

  // sum = weight row where `fresh`, else sum += weight row.
  void (*add_weighted)(const float* row, float weight, bool fresh, int n, float* sum);

  // out = round(scale sum), halves to even; `up`: halves upwards, as OpenCV has it where it halves both sides.
  void (*round_to_bytes)(const float* sum, float scale, bool up, int n, uint8_t* out);

  // One row of YUV 4:2:0 (luma, and its row of pairs U, V) or 4:2:2 (Y U Y V) to RGB: BT.601, studio range, in OpenCV's fixed point.
  void (*nv12_row)(const uint8_t* luma, const uint8_t* chroma, int n, uint8_t* rgb);
  void (*yuyv_row)(const uint8_t* pairs, int n, uint8_t* rgb);

  // One row of a Bayer pattern between its neighbours to RGB, bilinear; the first and the last pixel are copies of those beside them.
  // Columns of parity `first` hold the row's own colour (red, or blue), the others green.
  void (*bayer_row)(const uint8_t* up, const uint8_t* here, const uint8_t* down, int first, bool red, int n, uint8_t* rgb);

  void (*swap_red_blue)(const uint8_t* bgr, int n, uint8_t* rgb);
};

// The best that this CPU has.
const RowKernels& row_kernels();
// By name: "baseline" (always there), "avx2", "avx512"; null where this build or this CPU lacks it.
const RowKernels* row_kernels(const char* name);
// Uses another one from now on, for tests; false where it is not there. Not thread-safe.
bool use_row_kernels(const char* name);

}  // namespace agvas
