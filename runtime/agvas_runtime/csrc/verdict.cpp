#include "verdict.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "thread_pool.h"

namespace agvas {
namespace {

constexpr int kBand = 64;  // rows; a few times the height of a cell, so that each row of cells is enlarged about once

Verdict judge_bands(float* score, int height, int width, const Rule& rule, uint8_t* mask, int threads,
                    const std::function<void(int, int, float*)>& fill) {
  RunFinder finder(score, height, width, rule.threshold);
  std::vector<float> peaks(height);
  parallel_for((height + kBand - 1) / kBand, threads, [&](int band) {
    const int top = band * kBand, bottom = std::min(height, top + kBand);
    std::memset(mask + static_cast<size_t>(top) * width, 0, static_cast<size_t>(bottom - top) * width);
    fill(top, bottom, peaks.data() + top);
    if (rule.open) finder.rows(top, bottom, peaks.data() + top);
  });
  Verdict verdict;
  verdict.score = *std::max_element(peaks.begin(), peaks.end());
  verdict.regions = finder.regions(rule, mask);
  for (const Region& region : verdict.regions)
    verdict.insides.emplace_back(static_cast<size_t>(region.width) * region.height, uint8_t{0});
  for (size_t i = 0; i < finder.runs().size(); ++i) {
    const int label = finder.label_of_run()[i];
    if (label == 0) continue;
    const Region& region = verdict.regions[label - 1];
    const Run& run = finder.runs()[i];
    uint8_t* const row = verdict.insides[label - 1].data() + static_cast<size_t>(run.y - region.y) * region.width;
    std::memset(row + (run.begin - region.x), 1, run.end - run.begin);
  }
  return verdict;
}

}  // namespace

Verdict judge(const ScoreMap& map, const Rule& rule, float* score, uint8_t* mask, int threads) {
  const int width = map.width();
  return judge_bands(score, map.height(), width, rule, mask, threads, [&](int top, int bottom, float* peaks) {
    map.rows(top, bottom, score + static_cast<size_t>(top) * width, peaks);
  });
}

Verdict judge(const float* score, int height, int width, const Rule& rule, uint8_t* mask, int threads) {
  // Read only: nothing fills it.
  return judge_bands(const_cast<float*>(score), height, width, rule, mask, threads, [&](int top, int bottom, float* peaks) {
    for (int y = top; y < bottom; ++y) {
      const float* const row = score + static_cast<size_t>(y) * width;
      float lanes[16] = {};
      int x = 0;
      for (; x + 16 <= width; x += 16)
        for (int j = 0; j < 16; ++j) lanes[j] = lanes[j] < row[x + j] ? row[x + j] : lanes[j];
      for (; x < width; ++x) lanes[0] = std::max(lanes[0], row[x]);
      peaks[y - top] = *std::max_element(lanes, lanes + 16);
    }
  });
}

float fill_score_map(const ScoreMap& map, float* score, int threads) {
  std::vector<float> peaks(map.height());
  parallel_for((map.height() + kBand - 1) / kBand, threads, [&](int band) {
    const int top = band * kBand;
    map.rows(top, std::min(map.height(), top + kBand), score + static_cast<size_t>(top) * map.width(), peaks.data() + top);
  });
  return *std::max_element(peaks.begin(), peaks.end());
}

}  // namespace agvas
