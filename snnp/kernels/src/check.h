// Is a plan whole? Everything a kernel reads must lie inside the block.
#pragma once
#include "plan.h"

namespace snnp {

bool plan_is_sound(const void* memory, int64_t bytes);

}  // namespace snnp
