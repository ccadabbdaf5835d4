#include "views.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "area_axis.h"
#include "row_kernels.h"
#include "thread_pool.h"

namespace agvas {
namespace {

// One view: what does not change from row to row.
struct Resize {
  const ViewPlan* plan;
  ViewAxes axes;

  Resize(const ViewPlan& given, const Crop& crop) : plan(&given), axes(given, crop) {}

  // Pixels [H, W, 3] of row y to where they belong.
  void store(int y, int from_x, const uint8_t* rgb, int n) const {
    std::memcpy(plan->out + 3 * (static_cast<size_t>(y) * plan->wide + from_x), rgb, 3 * static_cast<size_t>(n));
  }

  void pad() const {
    std::vector<uint8_t> row;
    for (int x = 0; x < plan->wide; ++x) row.insert(row.end(), plan->padding, plan->padding + 3);
    for (int y = 0; y < plan->high; ++y) {
      const int from_x = y < plan->content_high ? plan->content_wide : 0;
      if (from_x < plan->wide) store(y, from_x, row.data(), plan->wide - from_x);
    }
  }
};

// A band of one view's rows on one thread.
class Band {
 public:
  Band(const Resize& resize, int begin, int end, bool grey)
      : resize_(resize), next_(begin), end_(end), grey_(grey), lanes_(grey ? 1 : 4),
        row_(static_cast<size_t>(lanes_) * resize.plan->content_wide), sum_(row_.size()), bytes_(row_.size()), packed_(3 * row_.size()) {}

  int first_row() const { return resize_.axes.rows.first[next_]; }

  // The next row of the crop, if this band needs it.
  void take(int y, const float* pixels) {
    if (next_ == end_ || y < resize_.axes.rows.first[next_]) return;
    const RowKernels& kernels = row_kernels();
    (grey_ ? kernels.shrink_grey : kernels.shrink_rgb)(pixels, resize_.axes.columns.view(), row_.data());
    while (next_ < end_ && y >= resize_.axes.rows.first[next_]) {  // a row on the border of two cells counts for both
      const int index = y - resize_.axes.rows.first[next_];
      const int count = resize_.axes.rows.count[next_];
      kernels.add_weighted(row_.data(), resize_.axes.rows.weight[static_cast<size_t>(next_) * resize_.axes.rows.taps + index], index == 0, static_cast<int>(row_.size()),
                           sum_.data());
      if (index + 1 < count) break;
      finish(kernels);
      ++next_;
    }
  }

 private:
  void finish(const RowKernels& kernels) {
    const int n = resize_.plan->content_wide;
    kernels.round_to_bytes(sum_.data(), resize_.axes.scale, resize_.axes.up, static_cast<int>(sum_.size()), bytes_.data());
    for (int x = 0; x < n; ++x)
      for (int c = 0; c < 3; ++c) packed_[3 * x + c] = bytes_[grey_ ? x : 4 * x + c];
    resize_.store(next_, 0, packed_.data(), n);
  }

  const Resize& resize_;
  int next_, end_;
  bool grey_;
  int lanes_;
  std::vector<float> row_, sum_;
  std::vector<uint8_t> bytes_, packed_;
};

}  // namespace

void make_views(const CameraFrame& frame, const Crop& crop, const ViewPlan* plans, int count, uint8_t* rgb, int threads) {
  if (crop.top < 0 || crop.left < 0 || crop.height < 1 || crop.width < 1 || crop.top + crop.height > frame.height ||
      crop.left + crop.width > frame.width)
    throw std::invalid_argument("the crop leaves the frame");
  const CameraRows rows(frame);
  const bool grey = is_grey(frame.format) && rgb == nullptr;
  std::vector<Resize> resizes;
  for (int i = 0; i < count; ++i) resizes.emplace_back(plans[i], crop);

  int margin = 0;  // zeros behind a row, where cells of fewer pixels have weights of zero
  for (const Resize& resize : resizes) margin = std::max(margin, resize.axes.columns.taps);
  const int tasks = std::min(crop.height, 4 * (threads > 0 ? threads : cores()));
  parallel_for(tasks, threads, [&](int task) {
    const auto cut = [&](int length, int index) { return static_cast<int>(static_cast<int64_t>(length) * index / tasks); };
    int begin = crop.height, end = 0;
    if (rgb != nullptr) begin = cut(crop.height, task), end = cut(crop.height, task + 1);
    const int rgb_begin = begin, rgb_end = end;
    std::vector<Band> bands;
    for (const Resize& resize : resizes) {
      const int top = cut(resize.plan->content_high, task), bottom = cut(resize.plan->content_high, task + 1);
      if (top == bottom) continue;
      bands.emplace_back(resize, top, bottom, grey);
      begin = std::min(begin, bands.back().first_row());
      end = std::max(end, resize.axes.rows.first[bottom - 1] + resize.axes.rows.count[bottom - 1]);
    }
    std::vector<uint8_t> scratch;
    std::vector<float> wide(static_cast<size_t>(crop.width + margin) * 3 + 4);
    for (int y = begin; y < end; ++y) {
      const int channels = grey ? 1 : 3;
      const uint8_t* const row = grey ? rows.grey(crop.top + y, scratch) : rows.rgb(crop.top + y, scratch);
      const uint8_t* const pixels = row + channels * crop.left;
      if (y >= rgb_begin && y < rgb_end && rgb != nullptr)
        std::memcpy(rgb + 3 * static_cast<size_t>(y) * crop.width, pixels, 3 * static_cast<size_t>(crop.width));
      row_kernels().widen(pixels, channels * crop.width, wide.data());
      for (Band& band : bands) band.take(y, wide.data());
    }
  });
  for (const Resize& resize : resizes) resize.pad();
}

}  // namespace agvas
