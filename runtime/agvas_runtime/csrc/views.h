// From a camera's frame to the views of all encoders, in one pass over the frame.
//
//     ViewPlan plans[] = {semantic, pixel};
//     make_views(frame, region, plans, 2, rgb, threads);
//
// Each row of the frame is read and converted once, while it lies in the cache, for every view and for the RGB copy. The caller owns all
// buffers. Thread-safe.
#pragma once

#include <cstdint>

#include "camera_rows.h"

namespace agvas {

// The rectangle of the frame that is looked at.
struct Crop {
  int top, left, height, width;
};

// The antialiased mean over areas (OpenCV's INTER_AREA, to the bit): no side may be enlarged.
struct ViewPlan {
  int content_high, content_wide;  // the crop fills this much, from the top left corner
  int high, wide;                  // of all of the view
  uint8_t padding[3];              // RGB of the rest
  uint8_t* out;                    // [high, wide, 3]; a bundle's graphs normalise by themselves
};

// Throws std::invalid_argument where a plan enlarges, or the crop leaves the frame. `rgb`, where not null: uint8 [height, width, 3] of the crop.
void make_views(const CameraFrame& frame, const Crop& crop, const ViewPlan* plans, int count, uint8_t* rgb, int threads);

}  // namespace agvas
