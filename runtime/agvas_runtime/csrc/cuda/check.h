// The one way in which CUDA is called: a failure throws with file, line, what CUDA says and what to do.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace agvas {

inline void check_cuda(cudaError_t code, const char* call, const char* file, int line) {
  if (code == cudaSuccess) return;
  const char* remedy = code == cudaErrorMemoryAllocation      ? "give smaller frames or fewer regions, or free memory of the GPU"
                       : code == cudaErrorNoKernelImageForDevice ? "build agvas for this GPU: pip install . -C cmake.define.AGVAS_CUDA=on"
                       : code == cudaErrorInsufficientDriver  ? "update the driver"
                       : code == cudaErrorNoDevice            ? "no GPU is here: take a backend of the CPU"
                                                              : "look at the driver's log (dmesg) and start again";
  throw std::runtime_error(std::string(cudaGetErrorString(code)) + " in " + call + " (" + file + ":" + std::to_string(line) + "): " + remedy);
}

}  // namespace agvas

#define AGVAS_CHECK(call) ::agvas::check_cuda((call), #call, __FILE__, __LINE__)
