#include "regions.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "row_kernels.h"

namespace agvas {
namespace {

int root_of(std::vector<int32_t>& parents, int node) {
  while (parents[node] != node) node = parents[node] = parents[parents[node]];
  return node;
}

// The lower one becomes the root, so that a region's root is its first run.
void join(std::vector<int32_t>& parents, int a, int b) {
  a = root_of(parents, a);
  b = root_of(parents, b);
  if (a < b) parents[b] = a;
  if (b < a) parents[a] = b;
}

struct Point {
  int64_t x, y;
};

int64_t turn(const Point& a, const Point& b, const Point& c) { return (b.x - a.x) * (c.y - a.y) - (b.y - a.y) * (c.x - a.x); }

// Convex hull of points in rising order of y and then x (Andrew's monotone chain).
std::vector<Point> hull_of(const std::vector<Point>& points) {
  std::vector<Point> hull;
  for (int side = 0; side < 2; ++side) {
    const size_t start = hull.size();
    for (size_t i = 0; i < points.size(); ++i) {
      const Point& point = side == 0 ? points[i] : points[points.size() - 1 - i];
      while (hull.size() >= start + 2 && turn(hull[hull.size() - 2], hull.back(), point) <= 0) hull.pop_back();
      hull.push_back(point);
    }
    hull.pop_back();  // the first of the other side
  }
  return hull;
}

// One side of the tightest rectangle lies along an edge of the hull.
void measure(const std::vector<Point>& points, Region& region) {
  region.length = region.breadth = 1.0;
  const std::vector<Point> hull = hull_of(points);
  double smallest = INFINITY;
  for (size_t i = 0; i < hull.size(); ++i) {
    const Point &a = hull[i], &b = hull[(i + 1) % hull.size()];
    const int64_t ex = b.x - a.x, ey = b.y - a.y;
    int64_t least = 0, most = 0, off = 0;
    for (const Point& p : hull) {
      const int64_t along = (p.x - a.x) * ex + (p.y - a.y) * ey;
      least = std::min(least, along);
      most = std::max(most, along);
      off = std::max(off, std::abs(turn(a, b, p)));
    }
    const double edge = std::sqrt(static_cast<double>(ex * ex + ey * ey));
    if (edge == 0) continue;
    const double one = static_cast<double>(most - least) / edge, other = static_cast<double>(off) / edge;
    if (one * other >= smallest) continue;
    smallest = one * other;
    region.length = std::max(one, other) + 1.0;
    region.breadth = std::min(one, other) + 1.0;
  }
}

}  // namespace

RunFinder::RunFinder(const float* score, int height, int width, float threshold)
    : score_(score), height_(height), width_(width), threshold_(threshold), by_row_(height) {}

void RunFinder::rows(int top, int bottom, const float* peaks) {
  const RowKernels& kernels = row_kernels();
  for (int y = top; y < bottom; ++y) {
    if (peaks != nullptr && !(peaks[y - top] > threshold_)) continue;
    const float* const row = score_ + static_cast<size_t>(y) * width_;
    int x = 0;
    while ((x = kernels.first_above(row, threshold_, x, width_)) < width_) {
      Run run{y, x, x, 0.0, 0.0f};
      for (; x < width_ && row[x] > threshold_; ++x) {
        run.sum += row[x];
        run.peak = std::max(run.peak, row[x]);
      }
      run.end = x;
      by_row_[y].push_back(run);
    }
  }
}

std::vector<Region> RunFinder::regions(const Rule& rule, uint8_t* mask) {
  runs_.clear();
  std::vector<int32_t> parents;
  size_t above = 0, above_end = 0;  // the runs of the row above
  for (int y = 0; y < height_; ++y) {
    const size_t begin = runs_.size();
    for (const Run& run : by_row_[y]) {
      const int index = static_cast<int>(runs_.size());
      parents.push_back(index);
      runs_.push_back(run);
      while (above < above_end && runs_[above].end < run.begin) ++above;  // ends two columns or more before it begins
      for (size_t i = above; i < above_end && runs_[i].begin <= run.end; ++i) join(parents, static_cast<int>(i), index);
    }
    above = begin;
    above_end = runs_.size();
  }

  std::vector<Region> all(runs_.size());  // by root
  for (size_t i = 0; i < runs_.size(); ++i) {
    const Run& run = runs_[i];
    Region& region = all[root_of(parents, static_cast<int>(i))];
    const int64_t pixels = run.end - run.begin;
    if (region.area == 0) region = {0, run.begin, run.y, run.end, 0, 0, 0, 0, 0, 0, 0};  // width holds the right end for now
    region.area += pixels;
    region.x = std::min(region.x, run.begin);
    region.width = std::max(region.width, run.end);
    region.height = run.y + 1 - region.y;
    region.sum_x += 0.5 * static_cast<double>(pixels) * (run.begin + run.end - 1);
    region.sum_y += static_cast<double>(pixels) * run.y;
    region.sum_score += run.sum;
    region.max_score = std::max(region.max_score, run.peak);
  }

  labels_.assign(runs_.size(), 0);
  std::vector<Region> counted;
  std::vector<std::vector<Point>> ends;
  for (size_t i = 0; i < runs_.size(); ++i) {
    const int root = root_of(parents, static_cast<int>(i));
    Region& region = all[root];
    if (root == static_cast<int>(i) && rule.open && region.max_score > rule.seed &&
        static_cast<double>(region.area) >= rule.min_area) {
      region.width -= region.x;
      counted.push_back(region);
      ends.emplace_back();
      labels_[i] = static_cast<int32_t>(counted.size());
    }
    if (labels_[root] == 0) continue;
    labels_[i] = labels_[root];
    const Run& run = runs_[i];
    std::memset(mask + static_cast<size_t>(run.y) * width_ + run.begin, 1, run.end - run.begin);
    std::vector<Point>& points = ends[labels_[i] - 1];
    points.push_back({run.begin, run.y});
    if (run.end - run.begin > 1) points.push_back({run.end - 1, run.y});
  }
  for (size_t i = 0; i < counted.size(); ++i) measure(ends[i], counted[i]);
  return counted;
}

}  // namespace agvas
