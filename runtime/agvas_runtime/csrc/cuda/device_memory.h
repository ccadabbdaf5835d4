// Device memory that lives as long as its owner.
#pragma once

#include <cstdint>
#include <vector>

#include "check.h"

namespace agvas {

class DeviceMemory {
 public:
  DeviceMemory() = default;
  DeviceMemory(DeviceMemory&& other) noexcept : held_(std::move(other.held_)) { other.held_.clear(); }
  ~DeviceMemory() {
    for (void* memory : held_) cudaFree(memory);
  }

  template <class T>
  T* allocate(size_t count) {
    void* memory = nullptr;
    AGVAS_CHECK(cudaMalloc(&memory, sizeof(T) * (count > 0 ? count : 1)));
    held_.push_back(memory);
    return static_cast<T*>(memory);
  }

  template <class T>
  T* copy(const std::vector<T>& values) {
    T* const memory = allocate<T>(values.size());
    AGVAS_CHECK(cudaMemcpy(memory, values.data(), sizeof(T) * values.size(), cudaMemcpyHostToDevice));
    return memory;
  }

 private:
  std::vector<void*> held_;
};

}  // namespace agvas
