// Page-locked memory, from which a GPU copies while its kernels run. Thread-safe.
#pragma once

#include <cstddef>

namespace agvas {

// Null where the build is without CUDA or there is no GPU; throws std::bad_alloc where there is one and it refuses.
void* allocate_pinned(size_t bytes);
void free_pinned(void* memory);

}  // namespace agvas
