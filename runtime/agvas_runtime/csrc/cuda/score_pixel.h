// P of one pixel (eq. 7 and 8), and the union-find by which pixels above the threshold become regions. The arithmetic is that of
// score_map.cpp and row_kernels.cpp, in the same order, so that P is the same to the bit.
#pragma once

#include <cmath>
#include <cstring>

#include "both.h"
#include "score_map.h"

namespace agvas {

struct CellPlace {
  int cell;
  float far;
};

AGVAS_BOTH CellPlace cell_place(int pixel, int cells, int enlarged) {
  const double scale = 1.0 / (static_cast<double>(enlarged) / cells);
  const float exact = static_cast<float>((pixel + 0.5) * scale - 0.5);
  const float floored = floorf(exact);
  return {static_cast<int>(floored), exact - floored};
}

AGVAS_BOTH float part_value(const ScorePart& part, const float* map, int y, int x) {
  CellPlace across = cell_place(x, part.cells_wide, part.enlarged_wide);
  const CellPlace down = cell_place(y, part.cells_high, part.enlarged_high);
  if (across.cell < 0) across = {0, 0.0f};
  if (across.cell >= part.cells_wide - 1) across = {part.cells_wide - 1, 0.0f};
  const int right = across.cell + 1 < part.cells_wide ? across.cell + 1 : across.cell;
  const int last = part.cells_high - 1;
  const int upper = down.cell < 0 ? 0 : down.cell > last ? last : down.cell;
  const int lower = down.cell + 1 < 0 ? 0 : down.cell + 1 > last ? last : down.cell + 1;
  const float near = 1.0f - across.far;
  const float* const a = map + upper * part.stride;
  const float* const b = map + lower * part.stride;
  const float above = a[across.cell] * near + a[right] * across.far;
  const float below = b[across.cell] * near + b[right] * across.far;
  const float value = (above * (1.0f - down.far) + below * down.far) * part.share;
  return part.column_weight == nullptr ? value : (value * part.row_weight[y]) * part.column_weight[x];
}

AGVAS_BOTH float sigmoid_pixel(float x) {
  x = x < -80.0f ? -80.0f : x;
  x = -(x > 80.0f ? 80.0f : x);
  const float shifted = x * 1.44269504088896341f + 12582912.0f;
  const float k = shifted - 12582912.0f;
  const float r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = (p * (r * r) + r) + 1.0f;
  const int32_t bits = (static_cast<int32_t>(k) + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof power);
  return 1.0f / (1.0f + p * power);
}

AGVAS_BOTH float score_pixel(const ScorePart* parts, int count, float alpha, float rest, int y, int x) {
  float seg = 0.0f, rel = 0.0f;
  for (int i = 0; i < count; ++i) {
    const ScorePart& part = parts[i];
    const int row = y - part.top, column = x - part.left;
    if (row < 0 || column < 0 || row >= part.height || column >= part.width) continue;
    seg += part_value(part, part.seg, row, column);
    rel += part_value(part, part.rel, row, column);
  }
  const float p = sigmoid_pixel(seg) * alpha + sigmoid_pixel(rel) * rest;
  return p < 1.0f ? p : 1.0f;
}

// Of the logits of the first words of the answer and of the refusal, as stages/prefill.py has it.
AGVAS_BOTH double acceptance(float answer, float refusal) {
  double against = static_cast<double>(refusal) - static_cast<double>(answer);
  against = against < -80.0 ? -80.0 : against > 80.0 ? 80.0 : against;
  return static_cast<double>(static_cast<float>(1.0 / (1.0 + exp(against))));
}

// Labels: -1 below the threshold, else the index of a pixel of the same region, in the end that of its first one.
AGVAS_BOTH int find_root(const int* labels, int at) {
  while (labels[at] != at) at = labels[at];
  return at;
}

}  // namespace agvas
