#include "pool.h"

#ifdef _WIN32

namespace snnp {
void run_parts(Task task, void* context, int64_t n_parts) {
  for (int64_t part = 0; part < n_parts; ++part) task(context, part);
}
}  // namespace snnp

#else

#include <pthread.h>

namespace snnp {
namespace {

constexpr int64_t kMostThreads = 256;

struct Pool {
  pthread_mutex_t lock, turn;  // turn: held by the caller whose work is being done
  pthread_cond_t wake, done;
  int64_t n_threads, generation, next, n_parts, unfinished;
  Task task;
  void* context;
};

Pool pool = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, PTHREAD_COND_INITIALIZER,
             0, 0, 0, 0, 0, nullptr, nullptr};
pthread_once_t registered = PTHREAD_ONCE_INIT;

// A forked child has none of the threads, and locks in an unknown state.
void forget() {
  pthread_mutex_init(&pool.lock, nullptr);
  pthread_mutex_init(&pool.turn, nullptr);
  pthread_cond_init(&pool.wake, nullptr);
  pthread_cond_init(&pool.done, nullptr);
  pool.n_threads = pool.next = pool.n_parts = pool.unfinished = 0;
}
void watch_forks() { pthread_atfork(nullptr, nullptr, forget); }

// Take parts until none is left. Called, and returns, with the lock held.
void work_off() {
  while (pool.next < pool.n_parts) {
    const int64_t part = pool.next++;
    Task task = pool.task;
    void* context = pool.context;
    pthread_mutex_unlock(&pool.lock);
    task(context, part);
    pthread_mutex_lock(&pool.lock);
    if (--pool.unfinished == 0) pthread_cond_signal(&pool.done);
  }
}

void* serve(void*) {
  pthread_mutex_lock(&pool.lock);
  int64_t seen = 0;
  for (;;) {
    while (pool.generation == seen) pthread_cond_wait(&pool.wake, &pool.lock);
    seen = pool.generation;
    work_off();
  }
  return nullptr;
}

// As many threads as asked for, or as the system grants. Called with the lock held.
void grow(int64_t wanted) {
  wanted = wanted < kMostThreads ? wanted : kMostThreads;
  while (pool.n_threads < wanted) {
    pthread_t thread;
    if (pthread_create(&thread, nullptr, serve, nullptr) != 0) return;
    pthread_detach(thread);
    ++pool.n_threads;
  }
}

}  // namespace

void run_parts(Task task, void* context, int64_t n_parts) {
  // Another caller's work is not waited for: the parts are then done here, with the same results.
  if (n_parts < 2 || pthread_mutex_trylock(&pool.turn) != 0) {
    for (int64_t part = 0; part < n_parts; ++part) task(context, part);
    return;
  }
  pthread_once(&registered, watch_forks);
  pthread_mutex_lock(&pool.lock);
  grow(n_parts - 1);
  pool.task = task;
  pool.context = context;
  pool.next = 0;
  pool.n_parts = pool.unfinished = n_parts;
  ++pool.generation;
  pthread_cond_broadcast(&pool.wake);
  work_off();
  while (pool.unfinished) pthread_cond_wait(&pool.done, &pool.lock);
  pool.n_parts = 0;
  pthread_mutex_unlock(&pool.lock);
  pthread_mutex_unlock(&pool.turn);
}

}  // namespace snnp

#endif
