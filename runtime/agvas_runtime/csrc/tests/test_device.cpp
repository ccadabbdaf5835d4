// The kernels with their launches, on the CPU (on_cpu/cuda_runtime.h): views and verdicts are the reference's.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "cuda/device_verdict.h"
#include "cuda/device_views.h"
#include "verdict.h"

using namespace agvas;

namespace {

constexpr int kHeight = 151, kWidth = 203, kHigh = 20, kWide = 30, kRoom = 4096;

// The logits of two looks, one of them two tiles with seams, and what they must come to.
struct Frame {
  std::vector<float> cells, rel, weights = std::vector<float>(200, 0.7f);
  std::vector<ScorePart> parts;
  std::vector<DeviceTile> tiles;
  float leans[4] = {2.0f, 1.5f, -0.25f, -0.5f};

  explicit Frame(int seed, float mean) : cells(9 * kHigh * kWide), rel(3 * kHigh * kWide) {
    std::mt19937 random(seed);
    std::normal_distribution<float> draw(mean, 6.0f);
    for (float& cell : cells) cell = draw(random);
    const int plane = kHigh * kWide;
    for (int at = 0; at < 3; ++at) {
      const float* const logits = cells.data() + 3 * at * plane;
      for (int i = 0; i < plane; ++i) rel[at * plane + i] = logits[plane + i] - logits[i];
      ScorePart part{logits + 2 * plane, rel.data() + at * plane, kHigh, kWide, kWide, kHeight, kWidth, 0, 0, kHeight, kWidth, 0.6f, nullptr, nullptr};
      if (at > 0) {
        part.cells_high = kHigh - 1, part.share = 0.4f;
        part.enlarged_high = 100, part.enlarged_wide = 140, part.top = at == 1 ? 40 : 10, part.left = at == 1 ? 50 : 0, part.height = 100, part.width = 140;
        part.row_weight = part.column_weight = weights.data();
      }
      parts.push_back(part);
      part.rel = nullptr;
      tiles.push_back({at == 0 ? 0 : 1, part, logits + plane, logits, at == 0 ? leans : leans + 1 + at, at == 0 ? leans + 1 : nullptr});
    }
  }
};

struct Judged {
  std::vector<float> score = std::vector<float>(kHeight * kWidth, -1.0f);
  std::vector<uint8_t> mask = std::vector<uint8_t>(kHeight * kWidth, 9);
  DeviceRegions summary{};
  std::vector<DeviceRegion> regions;

  Judged(const Frame& frame, const DeviceRule& rule, int room = kRoom) : regions(room) {
    const DeviceVerdict verdict(frame.tiles, kHeight, kWidth, 0.4f, 0.6f, room);
    for (int again = 0; again < 2; ++again)  // what one frame leaves must not reach the next
      verdict.run(&rule, score.data(), mask.data(), &summary, regions.data(), nullptr);
  }
};

}  // namespace

TEST(verdicts_by_kernels_are_the_references) {
  for (int seed = 0; seed < 6; ++seed) {
    const Frame frame(seed, -4.0f);
    const DeviceRule rule{0.3f, 0.6f, 12.0, 0.5};
    const Judged found(frame, rule);
    std::vector<float> score(kHeight * kWidth);
    std::vector<uint8_t> mask(kHeight * kWidth);
    const Verdict wanted = judge(ScoreMap(frame.parts, kHeight, kWidth, 0.4f, 0.6f), {0.3f, 0.6f, 12.0, true}, score.data(), mask.data(), 1);
    CHECK(found.score == score);
    CHECK(found.mask == mask);
    CHECK(found.summary.score == wanted.score);
    CHECK(!wanted.regions.empty());
    CHECK(found.summary.counting == static_cast<int>(wanted.regions.size()));
    CHECK(found.summary.overflow == 0 && found.summary.broken == 0);
    std::vector<DeviceRegion> counted;
    for (int i = 0; i < found.summary.count; ++i)
      if (found.regions[i].counts) counted.push_back(found.regions[i]);
    std::sort(counted.begin(), counted.end(), [](const DeviceRegion& a, const DeviceRegion& b) { return a.first < b.first; });
    CHECK(counted.size() == wanted.regions.size());
    for (size_t i = 0; i < counted.size(); ++i) {
      const DeviceRegion& mine = counted[i];
      const Region& theirs = wanted.regions[i];
      CHECK(mine.area == theirs.area && mine.left == theirs.x && mine.top == theirs.y);
      CHECK(mine.right - mine.left == theirs.width && mine.bottom - mine.top == theirs.height);
      CHECK(static_cast<double>(mine.sum_x) == theirs.sum_x && static_cast<double>(mine.sum_y) == theirs.sum_y);
      CHECK(mine.max_score == theirs.max_score && std::abs(mine.sum_score - theirs.sum_score) < 1e-6 * (1 + theirs.sum_score));
    }
  }
}

TEST(acceptance_is_the_best_tiles_weighed_and_gates_the_verdict) {
  const Frame frame(1, -4.0f);
  const double accept = 0.6f * static_cast<double>(static_cast<float>(1 / (1 + std::exp(-0.5)))) + 0.4f * static_cast<double>(static_cast<float>(1 / (1 + std::exp(0.25))));
  const Judged open(frame, {0.3f, 0.6f, 12.0, 0.5});
  CHECK(std::abs(open.summary.accept - accept) < 1e-7 && open.summary.counting > 0);
  const Judged closed(frame, {0.3f, 0.6f, 12.0, accept + 1e-6});
  CHECK(closed.summary.counting == 0);
  CHECK(std::count(closed.mask.begin(), closed.mask.end(), 0) == kHeight * kWidth);
}

TEST(logits_that_are_no_numbers_and_too_many_regions_are_told) {
  Frame frame(2, -4.0f);
  const Judged few(frame, {0.3f, 0.6f, 12.0, 0.5}, 1);
  CHECK(few.summary.overflow == 1 && few.summary.counting > 0);
  frame.cells[kHigh * kWide + 7] = std::numeric_limits<float>::infinity();
  CHECK(Judged(frame, {0.3f, 0.6f, 12.0, 0.5}).summary.broken == 1);
  Frame other(2, -4.0f);
  other.leans[1] = std::nanf("");
  CHECK(Judged(other, {0.3f, 0.6f, 12.0, 0.5}).summary.broken == 1);
}

TEST(views_by_kernels_are_the_references) {
  std::mt19937 random(4);
  std::vector<uint8_t> bytes(60 * 120), table(65536);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  for (uint8_t& byte : table) byte = static_cast<uint8_t>(random());
  for (PixelFormat format : {PixelFormat::BayerRG8, PixelFormat::NV12, PixelFormat::Mono16}) {
    const CameraFrame frame{bytes.data(), format, 40, 60, format == PixelFormat::Mono16 ? 120 : 60, nullptr, format == PixelFormat::Mono16 ? table.data() : nullptr};
    const Crop crop{4, 6, 30, 48};
    std::vector<uint8_t> wanted[2] = {std::vector<uint8_t>(3 * 33 * 50), std::vector<uint8_t>(3 * 9 * 11)}, found[2] = {wanted[0], wanted[1]};
    ViewPlan plans[] = {{27, 45, 33, 50, {9, 8, 7}, wanted[0].data()}, {9, 11, 9, 11, {9, 8, 7}, wanted[1].data()}};
    make_views(frame, crop, plans, 2, nullptr, 1);
    uint8_t* const outputs[] = {found[0].data(), found[1].data()};
    DeviceViews(frame, crop, plans, 2).run(bytes.data(), outputs, nullptr);
    CHECK(found[0] == wanted[0] && found[1] == wanted[1]);
  }
}
