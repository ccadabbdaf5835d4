#include "score_map.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "row_kernels.h"

namespace agvas {
namespace {

// Place of an enlarged pixel's centre between two cells, in OpenCV's roundings.
struct Place {
  int cell;
  float far;
};

Place place(int pixel, int cells, int enlarged) {
  const double scale = 1.0 / (static_cast<double>(enlarged) / cells);
  const float exact = static_cast<float>((pixel + 0.5) * scale - 0.5);
  const int cell = static_cast<int>(std::floor(exact));
  return {cell, exact - static_cast<float>(cell)};
}

// The two rows of cells above and below the current pixel row, enlarged along the columns; each row of cells is enlarged once.
class CellRows {
 public:
  CellRows(int cells_wide, int width) : padded_(cells_wide + 1), rows_{std::vector<float>(width), std::vector<float>(width)} {}

  template <class Columns>
  const float* row(const float* map, ptrdiff_t stride, int index, int cells_wide, const Columns& columns) {
    for (int i = 0; i < 2; ++i)
      if (held_[i] == index) return rows_[i].data();
    const int slot = held_[0] < held_[1] ? 0 : 1;  // rows come in rising order, so the lower one is done with
    std::memcpy(padded_.data(), map + index * stride, sizeof(float) * cells_wide);
    padded_[cells_wide] = padded_[cells_wide - 1];
    row_kernels().enlarge(padded_.data(), columns.at.data(), columns.near.data(), columns.far.data(),
                          static_cast<int>(columns.at.size()), rows_[slot].data());
    held_[slot] = index;
    return rows_[slot].data();
  }

 private:
  std::vector<float> padded_, rows_[2];
  int held_[2] = {-2, -1};
};

}  // namespace

ScoreMap::ScoreMap(std::vector<ScorePart> parts, int height, int width, float alpha, float rest)
    : parts_(std::move(parts)), height_(height), width_(width), alpha_(alpha), rest_(rest) {
  for (const ScorePart& part : parts_) {
    Columns columns;
    for (int x = 0; x < part.width; ++x) {
      Place found = place(x, part.cells_wide, part.enlarged_wide);
      if (found.cell < 0) found = {0, 0.0f};
      if (found.cell >= part.cells_wide - 1) found = {part.cells_wide - 1, 0.0f};
      columns.at.push_back(found.cell);
      columns.near.push_back(1.0f - found.far);
      columns.far.push_back(found.far);
    }
    columns_.push_back(std::move(columns));
  }
}

void ScoreMap::rows(int top, int bottom, float* out, float* peaks) const {
  const RowKernels& kernels = row_kernels();
  std::vector<CellRows> seg, rel;
  for (const ScorePart& part : parts_) {
    seg.emplace_back(part.cells_wide, part.width);
    rel.emplace_back(part.cells_wide, part.width);
  }
  std::vector<float> sums(2 * static_cast<size_t>(width_));
  float* const sum_seg = sums.data();
  float* const sum_rel = sum_seg + width_;
  for (int y = top; y < bottom; ++y) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (size_t i = 0; i < parts_.size(); ++i) {
      const ScorePart& part = parts_[i];
      if (y < part.top || y >= part.top + part.height) continue;
      const Place found = place(y - part.top, part.cells_high, part.enlarged_high);
      const int upper = std::clamp(found.cell, 0, part.cells_high - 1);
      const int lower = std::clamp(found.cell + 1, 0, part.cells_high - 1);
      const float row_weight = part.row_weight != nullptr ? part.row_weight[y - part.top] : 1.0f;
      const auto add = [&](const float* map, CellRows& cells, float* sum) {
        const float* a = cells.row(map, part.stride, upper, part.cells_wide, columns_[i]);
        const float* b = cells.row(map, part.stride, lower, part.cells_wide, columns_[i]);
        kernels.add_row(a, b, 1.0f - found.far, found.far, part.share, row_weight, part.column_weight, part.width, sum + part.left);
      };
      add(part.seg, seg[i], sum_seg);
      add(part.rel, rel[i], sum_rel);
    }
    peaks[y - top] = kernels.fuse(sum_seg, sum_rel, alpha_, rest_, width_, out + static_cast<size_t>(y - top) * width_);
  }
}

}  // namespace agvas
