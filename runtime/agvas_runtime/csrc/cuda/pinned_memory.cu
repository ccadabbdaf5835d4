#include "pinned_memory.h"

#include <new>

#include "check.h"

namespace agvas {

void* allocate_pinned(size_t bytes) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    cudaGetLastError();  // forget it: a machine without a GPU is no failure here
    return nullptr;
  }
  void* memory = nullptr;
  if (cudaHostAlloc(&memory, bytes, cudaHostAllocPortable) != cudaSuccess) {
    cudaGetLastError();
    throw std::bad_alloc();
  }
  return memory;
}

void free_pinned(void* memory) { cudaFreeHost(memory); }

}  // namespace agvas
