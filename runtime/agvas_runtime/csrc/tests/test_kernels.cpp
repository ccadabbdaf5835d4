// What the CUDA kernels do for one pixel, run here by the CPU for all of them: the same source, the reference's bits. The launches and the
// union-find's races are for a machine with a GPU (tests/native, marker gpu).
#include <cmath>
#include <random>

#include "area_axis.h"
#include "check.h"
#include "cuda/score_pixel.h"
#include "cuda/view_pixel.h"
#include "verdict.h"

using namespace agvas;

TEST(a_kernels_view_is_the_references) {
  std::mt19937 random(4);
  std::vector<uint8_t> bytes(3 * 60 * 80), table(65536);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  for (uint8_t& byte : table) byte = static_cast<uint8_t>(random());
  for (PixelFormat format : {PixelFormat::Mono8, PixelFormat::Mono16, PixelFormat::BayerRG8, PixelFormat::BayerGB8, PixelFormat::NV12,
                             PixelFormat::YUYV, PixelFormat::RGB8, PixelFormat::BGR8}) {
    const int of_pixel = format == PixelFormat::RGB8 || format == PixelFormat::BGR8 ? 3 : format == PixelFormat::YUYV || format == PixelFormat::Mono16 ? 2 : 1;
    CameraFrame frame{bytes.data(), format, 40, 60, of_pixel * 60, bytes.data() + 40 * 60, table.data()};
    for (const auto& [high, wide] : {std::pair<int, int>{13, 17}, {15, 20}, {10, 24}, {30, 48}}) {
      const Crop crop{4, 6, 30, 48};
      std::vector<uint8_t> expected(3 * 30 * 50), found(expected);
      const ViewPlan plan{high, wide, 30, 50, {9, 8, 7}, expected.data()};
      make_views(frame, crop, &plan, 1, nullptr, 1);
      const ViewAxes axes(plan, crop);
      const auto axis = [](const Axis& from) { return DeviceAxis{from.first.data(), from.count.data(), from.weight.data(), from.taps}; };
      const DeviceView view{axis(axes.rows), axis(axes.columns), crop.top, crop.left, high, wide, 30, 50, axes.scale, axes.up, {9, 8, 7}};
      for (int y = 0; y < 30; ++y)
        for (int x = 0; x < 50; ++x) view_pixel(frame, view, y, x, found.data());
      CHECK(found == expected);
    }
  }
}

TEST(a_kernels_score_is_the_references) {
  std::mt19937 random(5);
  std::normal_distribution<float> draw(0.0f, 9.0f);
  std::vector<float> cells(4 * 12 * 16), weights(80, 0.3f);
  for (float& cell : cells) cell = draw(random);
  const int height = 61, width = 77;
  const float* const at = cells.data();
  std::vector<ScorePart> parts = {{at, at + 192, 12, 16, 16, height, width, 0, 0, height, width, 0.6f, nullptr, nullptr},
                                  {at + 384, at + 576, 11, 15, 16, height + 3, width + 5, 0, 0, height, width, 0.25f, nullptr, nullptr},
                                  {at, at + 384, 1, 1, 16, 30, 40, 20, 30, 30, 40, 0.15f, weights.data(), weights.data()}};
  std::vector<float> expected(height * width);
  fill_score_map(ScoreMap(parts, height, width, 0.4f, 0.6f), expected.data(), 1);
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x) CHECK(score_pixel(parts.data(), 3, 0.4f, 0.6f, y, x) == expected[y * width + x]);
}
