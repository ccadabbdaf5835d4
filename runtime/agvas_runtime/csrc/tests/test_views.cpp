#include <cmath>
#include <cstdlib>
#include <random>

#include "check.h"
#include "row_kernels.h"
#include "views.h"

using namespace agvas;

namespace {

std::vector<uint8_t> noise(size_t size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

// The mean over the area of a cell, in double precision and without a table.
double mean(const std::vector<uint8_t>& rgb, int width, double top, double bottom, double left, double right, int channel) {
  double sum = 0;
  for (int y = static_cast<int>(top); y < bottom; ++y)
    for (int x = static_cast<int>(left); x < right; ++x)
      sum += (std::min(bottom, y + 1.0) - std::max(top, double(y))) * (std::min(right, x + 1.0) - std::max(left, double(x))) *
             rgb[3 * (y * width + x) + channel];
  return sum / ((bottom - top) * (right - left));
}

ViewPlan plan_of(int high, int wide, uint8_t* out) { return {high, wide, high, wide, {0, 0, 0}, out}; }

}  // namespace

TEST(a_view_is_the_mean_over_areas) {
  std::mt19937 random(1);
  for (int round = 0; round < 60; ++round) {
    const int height = 1 + random() % 60, width = 1 + random() % 60, high = 1 + random() % height, wide = 1 + random() % width;
    const std::vector<uint8_t> rgb = noise(3 * height * width, round);
    std::vector<uint8_t> out(3 * high * wide);
    const ViewPlan plan = plan_of(high, wide, out.data());
    make_views({rgb.data(), PixelFormat::RGB8, height, width, 3 * width}, {0, 0, height, width}, &plan, 1, nullptr, 1 + round % 3);
    const double down = double(height) / high, across = double(width) / wide;
    for (int y = 0; y < high; ++y)
      for (int x = 0; x < wide; ++x)
        for (int c = 0; c < 3; ++c) {
          const double expected = mean(rgb, width, y * down, std::min<double>(height, (y + 1) * down), x * across,
                                       std::min<double>(width, (x + 1) * across), c);
          CHECK(std::abs(out[3 * (y * wide + x) + c] - expected) < 0.51);
        }
  }
}

TEST(a_crop_is_seen_as_a_frame_of_its_own) {
  const std::vector<uint8_t> rgb = noise(3 * 50 * 70, 3);
  std::vector<uint8_t> crop, a(3 * 9 * 11), b(a.size()), copy(3 * 31 * 42);
  for (int y = 10; y < 41; ++y) crop.insert(crop.end(), &rgb[3 * (y * 70 + 20)], &rgb[3 * (y * 70 + 20)] + 3 * 42);
  const ViewPlan first = plan_of(9, 11, a.data()), second = plan_of(9, 11, b.data());
  make_views({rgb.data(), PixelFormat::RGB8, 50, 70, 210}, {10, 20, 31, 42}, &first, 1, copy.data(), 2);
  make_views({crop.data(), PixelFormat::RGB8, 31, 42, 126}, {0, 0, 31, 42}, &second, 1, nullptr, 1);
  CHECK(a == b);
  CHECK(copy == crop);
}

TEST(every_format_fills_the_view_and_pads_the_rest) {
  const int height = 34, width = 46;
  const std::vector<uint8_t> bytes = noise(3 * height * width, 5), table = noise(65536, 6);
  for (PixelFormat format : {PixelFormat::Mono8, PixelFormat::Mono16, PixelFormat::BayerRG8, PixelFormat::BayerGB8, PixelFormat::NV12,
                             PixelFormat::YUYV, PixelFormat::RGB8, PixelFormat::BGR8}) {
    const int of_pixel = format == PixelFormat::RGB8 || format == PixelFormat::BGR8 ? 3 : format == PixelFormat::YUYV || format == PixelFormat::Mono16 ? 2 : 1;
    const CameraFrame frame{bytes.data(), format, height, width, of_pixel * width, nullptr, table.data()};
    std::vector<uint8_t> view(3 * 20 * 20, 77), other(3 * 20 * 20, 78);  // what was there before must not show through
    const ViewPlan plans[] = {{15, 20, 20, 20, {1, 2, 3}, view.data()}, {15, 20, 20, 20, {1, 2, 3}, other.data()}};
    make_views(frame, {0, 0, height, width}, plans, 2, nullptr, 2);
    CHECK(view == other);
    for (int i = 300; i < 400; ++i)
      for (int c = 0; c < 3; ++c) CHECK(view[3 * i + c] == c + 1);
  }
}

TEST(instruction_sets_agree_on_a_view) {
  const std::vector<uint8_t> rgb = noise(3 * 123 * 211, 9);
  std::vector<uint8_t> expected;
  const std::string before = row_kernels().name;
  for (const char* isa : {"baseline", "avx2", "avx512"}) {
    if (!use_row_kernels(isa)) continue;
    std::vector<uint8_t> out(3 * 37 * 64);
    const ViewPlan plan = plan_of(37, 64, out.data());
    make_views({rgb.data(), PixelFormat::BayerRG8, 123, 211, 211}, {0, 0, 123, 211}, &plan, 1, nullptr, 1);
    if (expected.empty()) expected = out;
    CHECK(out == expected);
  }
  use_row_kernels(before.c_str());
}

TEST(what_enlarges_or_leaves_the_frame_is_refused) {
  const std::vector<uint8_t> rgb = noise(300, 1);
  std::vector<uint8_t> out(3 * 121);
  for (const auto& [size, crop] : {std::pair<int, Crop>{11, {0, 0, 10, 10}}, {5, {1, 0, 10, 10}}, {5, {0, 0, 0, 10}}}) {
    const ViewPlan plan = plan_of(size, size, out.data());
    bool refused = false;
    try {
      make_views({rgb.data(), PixelFormat::RGB8, 10, 10, 30}, crop, &plan, 1, nullptr, 1);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
}
