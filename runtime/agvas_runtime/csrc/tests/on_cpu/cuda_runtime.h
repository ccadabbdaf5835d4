// CUDA's runtime for tests without a GPU: device memory is the host's, and a kernel's blocks run on a few threads of the CPU at once, so that
// the kernels' own source is run, launches and joining included. It says nothing of a GPU's memory model, nor of speed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

using std::isfinite;

#define __global__ inline
#define __device__ inline

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned across = 1, unsigned down = 1, unsigned deep = 1) : x(across), y(down), z(deep) {}
};

inline thread_local dim3 threadIdx, blockIdx, blockDim;

template <class Kernel>
void launch_on_cpu(dim3 grid, dim3 block, const Kernel& kernel) {
#ifdef __SANITIZE_THREAD__
  const unsigned threads = 1;  // a kernel reads what another thread may raise meanwhile; the C++ standard has no word for that
#else
  const unsigned threads = 4;
#endif
  std::vector<std::thread> running;
  for (unsigned first = 0; first < threads; ++first) {
    running.emplace_back([=, &kernel] {
      blockDim = block;
      for (unsigned at = first; at < grid.x * grid.y; at += threads) {
        blockIdx = dim3(at % grid.x, at / grid.x);
        for (unsigned y = 0; y < block.y; ++y)
          for (unsigned x = 0; x < block.x; ++x) {
            threadIdx = dim3(x, y);
            kernel();
          }
      }
    });
  }
  for (std::thread& one : running) one.join();
}

#define AGVAS_LAUNCH(kernel, grid, block, stream, ...) ((void)(stream), launch_on_cpu(grid, block, [&] { kernel(__VA_ARGS__); }))

template <class T>
T atomicAdd(T* at, T value) {
  T before = *at;
  T after = before + value;
  while (!__atomic_compare_exchange(at, &before, &after, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) after = before + value;
  return before;
}
inline int atomicMin(int* at, int value) {
  int before = __atomic_load_n(at, __ATOMIC_SEQ_CST);
  while (value < before && !__atomic_compare_exchange_n(at, &before, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return before;
}
inline int atomicMax(int* at, int value) {
  int before = __atomic_load_n(at, __ATOMIC_SEQ_CST);
  while (value > before && !__atomic_compare_exchange_n(at, &before, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
  }
  return before;
}
inline int __float_as_int(float value) {
  int bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorMemoryAllocation = 2, cudaErrorInsufficientDriver = 35, cudaErrorNoDevice = 100, cudaErrorNoKernelImageForDevice = 209 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1 };
inline const char* cudaGetErrorString(cudaError_t) { return "out of memory"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMalloc(void** memory, size_t size) { return (*memory = std::malloc(size)) ? cudaSuccess : cudaErrorMemoryAllocation; }
inline cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  if (size > 0) std::memcpy(to, from, size);
  return cudaSuccess;
}
