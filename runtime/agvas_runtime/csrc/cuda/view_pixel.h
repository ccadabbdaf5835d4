// One pixel of a view, from a camera's frame. The sums run in the CPU reference's order and without fused multiply-adds (-fmad=false), so
// the two agree to the bit. Everything is plain data in device memory; nothing is allocated here.
#pragma once

#include "both.h"
#include "camera_rows.h"

namespace agvas {

struct Colour {
  int r, g, b;
};

// Weights of one axis in device memory, as AreaAxis has them.
struct DeviceAxis {
  const int32_t* first;
  const int32_t* count;
  const float* weight;
  int taps;
};

struct DeviceView {
  DeviceAxis rows, columns;
  int top, left;  // of the crop
  int content_high, content_wide, high, wide;
  float scale;
  bool up;
  uint8_t padding[3];
};

AGVAS_BOTH int clip_byte(int value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

AGVAS_BOTH Colour from_yuv(int luma, int u, int v) {
  const int y = (luma > 16 ? luma - 16 : 0) * 1220542, blue = u - 128, red = v - 128, half = 1 << 19;
  return {clip_byte((y + half + 1673527 * red) >> 20), clip_byte((y + half - 852492 * red - 409993 * blue) >> 20),
          clip_byte((y + half + 2116026 * blue) >> 20)};
}

AGVAS_BOTH Colour from_bayer(const CameraFrame& frame, int y, int x) {
  y = y < 1 ? 1 : y > frame.height - 2 ? frame.height - 2 : y;
  x = x < 1 ? 1 : x > frame.width - 2 ? frame.width - 2 : x;
  const uint8_t* const here = frame.data + y * frame.stride + x;
  const uint8_t* const up = here - frame.stride;
  const uint8_t* const down = here + frame.stride;
  const bool red_row = (y % 2 == 0) == (frame.format == PixelFormat::BayerRG8);
  int own, green, other;
  if (x % 2 == (red_row ? 0 : 1)) {
    own = here[0];
    green = (up[0] + down[0] + here[-1] + here[1] + 2) >> 2;
    other = (up[-1] + up[1] + down[-1] + down[1] + 2) >> 2;
  } else {
    own = (here[-1] + here[1] + 1) >> 1;
    green = here[0];
    other = (up[0] + down[0] + 1) >> 1;
  }
  return red_row ? Colour{own, green, other} : Colour{other, green, own};
}

AGVAS_BOTH Colour camera_pixel(const CameraFrame& frame, int y, int x) {
  const uint8_t* const row = frame.data + y * frame.stride;
  switch (frame.format) {
    case PixelFormat::Mono8: return {row[x], row[x], row[x]};
    case PixelFormat::Mono16: {
      const int grey = frame.table[row[2 * x] | row[2 * x + 1] << 8];
      return {grey, grey, grey};
    }
    case PixelFormat::NV12: {
      const uint8_t* const pair = frame.chroma + (y / 2) * frame.stride + x / 2 * 2;
      return from_yuv(row[x], pair[0], pair[1]);
    }
    case PixelFormat::YUYV: {
      const uint8_t* const pair = row + x / 2 * 4;
      return from_yuv(row[2 * x], pair[1], pair[3]);
    }
    case PixelFormat::RGB8: return {row[3 * x], row[3 * x + 1], row[3 * x + 2]};
    case PixelFormat::BGR8: return {row[3 * x + 2], row[3 * x + 1], row[3 * x]};
    default: return from_bayer(frame, y, x);
  }
}

AGVAS_BOTH uint8_t round_byte(float sum, float scale, bool up) {
  const float value = sum * scale;
  if (up) return static_cast<uint8_t>(static_cast<int>(value + 0.5f));
  const float bounded = value < 255.0f ? value : 255.0f;
  return static_cast<uint8_t>(static_cast<int>((bounded + 12582912.0f) - 12582912.0f));  // halves to even
}

// Writes pixel (y, x) of the view.
AGVAS_BOTH void view_pixel(const CameraFrame& frame, const DeviceView& view, int y, int x, uint8_t* out) {
  uint8_t rgb[3] = {view.padding[0], view.padding[1], view.padding[2]};
  if (y < view.content_high && x < view.content_wide) {
    float sums[3] = {0, 0, 0};
    const float* const across = view.columns.weight + x * view.columns.taps;
    const float* const down = view.rows.weight + y * view.rows.taps;
    for (int i = 0; i < view.rows.count[y]; ++i) {
      float row[3] = {0, 0, 0};
      for (int k = 0; k < view.columns.count[x]; ++k) {
        const Colour colour = camera_pixel(frame, view.top + view.rows.first[y] + i, view.left + view.columns.first[x] + k);
        row[0] += static_cast<float>(colour.r) * across[k];
        row[1] += static_cast<float>(colour.g) * across[k];
        row[2] += static_cast<float>(colour.b) * across[k];
      }
      for (int c = 0; c < 3; ++c) sums[c] += down[i] * row[c];
    }
    for (int c = 0; c < 3; ++c) rgb[c] = round_byte(sums[c], view.scale, view.up);
  }
  const int64_t at = static_cast<int64_t>(y) * view.wide + x;
  for (int c = 0; c < 3; ++c) out[3 * at + c] = rgb[c];
}

}  // namespace agvas
