// A few threads that wait for work; the same parts are made for the same number of threads, whoever runs them.
#pragma once
#include <stdint.h>

namespace snnp {

using Task = void (*)(void* context, int64_t part);

// Run task(context, 0 .. n_parts - 1), on up to n_parts threads, and return when all are done.
void run_parts(Task task, void* context, int64_t n_parts);

}  // namespace snnp
