#include <algorithm>
#include <cmath>
#include <random>

#include "check.h"
#include "verdict.h"

using namespace agvas;

namespace {

std::vector<float> noise(size_t size, unsigned seed, float low = 0.0f, float high = 1.0f) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> draw(low, high);
  std::vector<float> values(size);
  for (float& value : values) value = draw(random);
  return values;
}

struct Flooded {
  int64_t area = 0;
  float peak = 0;
  std::vector<int> pixels;
};

// The rule, pixel by pixel with a stack.
std::vector<Flooded> flood(const std::vector<float>& score, int height, int width, const Rule& rule) {
  std::vector<bool> seen(score.size());
  std::vector<Flooded> found;
  for (int start = 0; start < height * width; ++start) {
    if (seen[start] || !(score[start] > rule.threshold)) continue;
    Flooded region;
    std::vector<int> stack{start};
    seen[start] = true;
    while (!stack.empty()) {
      const int at = stack.back();
      stack.pop_back();
      region.pixels.push_back(at);
      region.peak = std::max(region.peak, score[at]);
      for (int dy = -1; dy <= 1; ++dy)
        for (int dx = -1; dx <= 1; ++dx) {
          const int y = at / width + dy, x = at % width + dx;
          if (y < 0 || x < 0 || y >= height || x >= width || seen[y * width + x] || !(score[y * width + x] > rule.threshold)) continue;
          seen[y * width + x] = true;
          stack.push_back(y * width + x);
        }
    }
    region.area = static_cast<int64_t>(region.pixels.size());
    if (rule.open && region.peak > rule.seed && static_cast<double>(region.area) >= rule.min_area) found.push_back(region);
  }
  return found;
}

}  // namespace

TEST(regions_are_what_a_flood_fill_finds) {
  std::mt19937 random(2);
  for (int round = 0; round < 200; ++round) {
    const int height = 1 + random() % 40, width = 1 + random() % 90;
    const std::vector<float> score = noise(height * width, round);
    const Rule rule{0.3f + 0.1f * (round % 6), 0.9f, double(round % 4), round % 7 != 0};
    std::vector<uint8_t> mask(score.size(), 9), expected(score.size(), 0);
    const Verdict verdict = judge(score.data(), height, width, rule, mask.data(), 1 + round % 3);
    const std::vector<Flooded> flooded = flood(score, height, width, rule);
    CHECK(verdict.regions.size() == flooded.size());
    for (size_t i = 0; i < flooded.size(); ++i) {
      const Region& region = verdict.regions[i];
      CHECK(region.area == flooded[i].area && region.max_score == flooded[i].peak);
      double sum = 0, sum_x = 0, sum_y = 0;
      int left = width, top = height, right = 0, bottom = 0;
      for (int at : flooded[i].pixels) {
        expected[at] = 1;
        const int y = at / width, x = at % width;
        sum += score[at], sum_x += x, sum_y += y;
        left = std::min(left, x), top = std::min(top, y), right = std::max(right, x + 1), bottom = std::max(bottom, y + 1);
        CHECK(verdict.insides[i][(y - region.y) * region.width + x - region.x] == 1);
      }
      CHECK(region.x == left && region.y == top && region.width == right - left && region.height == bottom - top);
      CHECK(std::abs(region.sum_score - sum) < 1e-9 && region.sum_x == sum_x && region.sum_y == sum_y);
      CHECK(std::count(verdict.insides[i].begin(), verdict.insides[i].end(), 1) == region.area);
      CHECK(region.length >= region.breadth && region.breadth >= 1 && region.length <= std::hypot(region.width, region.height) + 1e-9 + 1);
    }
    CHECK(mask == expected);
    CHECK(verdict.score == *std::max_element(score.begin(), score.end()));
  }
}

TEST(lines_and_pixels_have_their_length) {
  std::vector<float> score(20 * 30, 0.0f);
  std::vector<uint8_t> mask(score.size());
  for (int i = 0; i < 10; ++i) score[i * 30 + i] = 1.0f;       // on the diagonal
  for (int x = 15; x < 25; ++x) score[15 * 30 + x] = 1.0f;     // along a row
  score[3 * 30 + 25] = 1.0f;                                   // a single pixel
  const Verdict verdict = judge(score.data(), 20, 30, {}, mask.data(), 1);
  CHECK(verdict.regions.size() == 3);
  CHECK(std::abs(verdict.regions[0].length - (9 * std::sqrt(2.0) + 1)) < 1e-9 && verdict.regions[0].breadth == 1);
  CHECK(verdict.regions[1].length == 1 && verdict.regions[1].breadth == 1);
  CHECK(verdict.regions[2].length == 10 && verdict.regions[2].breadth == 1);
}

TEST(a_score_map_is_equations_7_and_8) {
  const int height = 53, width = 71, high = 6, wide = 9;
  const std::vector<float> seg = noise(high * wide, 1, -90, 90), rel = noise(high * wide, 2, -20, 20);
  const ScorePart part{seg.data(), rel.data(), high, wide, wide, height, width, 0, 0, height, width, 1.0f, nullptr, nullptr};
  std::vector<float> score(height * width);
  const float alpha = 0.3f;
  const float highest = fill_score_map(ScoreMap({part}, height, width, alpha, 1 - alpha), score.data(), 2);
  const auto value = [&](const std::vector<float>& map, int y, int x) {
    const double fy = std::clamp((y + 0.5) * high / height - 0.5, 0.0, high - 1.0), fx = std::clamp((x + 0.5) * wide / width - 0.5, 0.0, wide - 1.0);
    const int top = std::min(int(fy), high - 2), left = std::min(int(fx), wide - 2);
    const auto at = [&](int r, int c) { return double(map[(top + r) * wide + left + c]); };
    const double dy = fy - top, dx = fx - left;
    return (at(0, 0) * (1 - dx) + at(0, 1) * dx) * (1 - dy) + (at(1, 0) * (1 - dx) + at(1, 1) * dx) * dy;
  };
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x) {
      const double expected = alpha / (1 + std::exp(-value(seg, y, x))) + (1 - alpha) / (1 + std::exp(-value(rel, y, x)));
      CHECK(std::abs(score[y * width + x] - expected) < 2e-5);
    }
  CHECK(highest == *std::max_element(score.begin(), score.end()));
}

TEST(one_pass_gives_what_two_give) {
  const int height = 200, width = 150;
  const std::vector<float> seg = noise(20 * 15, 1, -9, 5), rel = noise(20 * 15, 2, -9, 5);
  const ScorePart part{seg.data(), rel.data(), 20, 15, 15, height, width, 0, 0, height, width, 1.0f, nullptr, nullptr};
  const Rule rule{0.4f, 0.6f, 4, true};
  std::vector<float> once(height * width), twice(once.size());
  std::vector<uint8_t> mask(once.size()), other(once.size());
  const ScoreMap map({part}, height, width, 0.5f, 0.5f);
  const Verdict first = judge(map, rule, once.data(), mask.data(), 3);
  fill_score_map(map, twice.data(), 1);
  const Verdict second = judge(twice.data(), height, width, rule, other.data(), 1);
  CHECK(once == twice && mask == other && first.score == second.score && first.regions.size() == second.regions.size());
  CHECK(!first.regions.empty());
}
