// The build without CUDA; cuda/pinned_memory.cu is the other one.
#include "pinned_memory.h"

namespace agvas {

void* allocate_pinned(size_t) { return nullptr; }
void free_pinned(void*) {}

}  // namespace agvas
