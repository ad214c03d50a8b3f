// Shares numbered tasks among the calling thread and the threads of XLA's pool.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>

#include "xla/ffi/api/ffi.h"

namespace mosaic {

using xla::ffi::ThreadPool;

struct Job {
  std::function<void(int64_t)> task;
  int64_t count;
  std::atomic<int64_t> next{0}, done{0};
  std::mutex mutex;
  std::condition_variable finished;
  std::exception_ptr failure;  // the last one

  void work() {
    for (int64_t index; (index = next.fetch_add(1)) < count;) {
      try {
        task(index);
      } catch (...) {
        std::lock_guard<std::mutex> lock(mutex);
        failure = std::current_exception();
      }
      if (done.fetch_add(1) + 1 == count) {
        std::lock_guard<std::mutex> lock(mutex);
        finished.notify_all();
      }
    }
  }
};

// Runs task(0) to task(count - 1), each once. A thread of the pool that comes too late finds nothing left to do, so the caller
// waits only for tasks that somebody has begun: a pool whose threads are all busy, or wait as this one does, cannot block it.
// What a task throws is thrown to the caller, once no task runs any more. pool: none where the thread works alone.
inline void share(ThreadPool* pool, int64_t count, std::function<void(int64_t)> task) {
  const int64_t helpers = pool ? std::min<int64_t>(count, pool->num_threads()) - 1 : 0;
  if (helpers < 1) {
    for (int64_t index = 0; index < count; ++index) task(index);
    return;
  }
  auto job = std::make_shared<Job>();
  job->task = std::move(task);
  job->count = count;
  for (int64_t helper = 0; helper < helpers; ++helper) {
    try {
      pool->Schedule([job] { job->work(); });
    } catch (...) {
      break;  // those that have begun use what the caller owns: he does the rest and waits for them
    }
  }
  job->work();
  std::unique_lock<std::mutex> lock(job->mutex);
  job->finished.wait(lock, [&] { return job->done.load() == job->count; });
  if (job->failure) std::rethrow_exception(job->failure);
}

// Memory of this thread for `count` floats, aligned to cache lines; kept, and grown where it is too small.
// slot: which of the thread's buffers. Throws std::bad_alloc.
inline float* scratch(int slot, int64_t count) {
  struct Buffer {
    float* data = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(data); }
  };
  thread_local Buffer buffers[4];
  Buffer& buffer = buffers[slot];
  if (buffer.size < count) {
    std::free(buffer.data);
    buffer.size = 0;
    const int64_t size = (count + 1023) / 1024 * 1024;
    buffer.data = static_cast<float*>(std::aligned_alloc(64, size * sizeof(float)));
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.size = size;
  }
  return buffer.data;
}

}  // namespace mosaic
