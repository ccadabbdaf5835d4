// Views on a GPU: the tables are laid out once, for one size of frame; then each frame is one launch for each view.
//
//     DeviceViews views(frame, crop, plans, count);            // allocates, copies, waits
//     views.run(frame_on_device, outputs_on_device, stream);   // neither allocates nor waits; may be captured into a graph
//
// Pointers and streams are CUDA's (from cuda-bindings, pycuda or torch). One thread at a time.
#pragma once

#include <memory>

#include "views.h"

namespace agvas {

class DeviceViews {
 public:
  // `frame` gives format, size, stride and (for Mono16, in host memory) the table; its data is not read.
  DeviceViews(const CameraFrame& frame, const Crop& crop, const ViewPlan* plans, int count);
  ~DeviceViews();

  // `outputs` [count]: device pointers to uint8 [H, W, 3]. `stream`: a cudaStream_t.
  void run(const uint8_t* frame, uint8_t* const* outputs, void* stream) const;
  int count() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace agvas
