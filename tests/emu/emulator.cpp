// The scheduler. Under the thread sanitizer this file is compiled without it and with
// VS_EMU_TSAN=1: its own bookkeeping must stay invisible. Fibers are then switched without implied
// order, so that only barriers, warp calls and the edges of a launch order two CUDA threads, and a
// missing barrier is reported whatever the schedule was.
#include "emulator.h"

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <memory>
#include <random>
#include <utility>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define VS_EMU_ASAN 1
extern "C" void __sanitizer_start_switch_fiber(void**, const void*, std::size_t);
extern "C" void __sanitizer_finish_switch_fiber(void*, const void**, std::size_t*);
extern "C" void __asan_unpoison_memory_region(const volatile void*, std::size_t);
#endif
#ifdef VS_EMU_TSAN
extern "C" void* __tsan_get_current_fiber();
extern "C" void* __tsan_create_fiber(unsigned);
extern "C" void __tsan_switch_to_fiber(void*, unsigned);
extern "C" void __tsan_acquire(void*);
extern "C" void __tsan_release(void*);
#else
static void __tsan_acquire(void*) {}
static void __tsan_release(void*) {}
#endif

namespace vs_emu {

Current current;

namespace {

constexpr std::size_t kStackBytes = 256 << 10;
constexpr unsigned kMostThreads = 1024;
constexpr int kPoison = 0xCD;

struct Fiber : Thread {
  enum { ready, at_barrier, at_warp_call, returned } state = ready;
  std::uint32_t mask = 0;  // of the warp call that it waits in
  unsigned source = 0;
  std::uint64_t value = 0;
  std::uint64_t result = 0;
  const char* where = "";
  std::unique_ptr<char[]> stack;
  void* fake_stack = nullptr;  // of the address sanitizer
  void* tsan = nullptr;
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
};

struct Scheduler {
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept: the thread sanitizer's take long to make
  std::vector<std::uint32_t> arrived;          // lanes that wait in a warp call, per warp
  Fiber home;
  const std::function<void()>* thread = nullptr;
  unsigned count = 0;
  unsigned at_barrier = 0;
  unsigned returned = 0;
  std::exception_ptr error;
  const void* home_bottom = nullptr;
  std::size_t home_size = 0;
  char start_edge = 0, end_edge = 0, barrier_edge = 0;  // what the thread sanitizer orders by
} scheduler;

Fiber& self() { return static_cast<Fiber&>(*current.thread); }

#if defined(__x86_64__)
// Callee-saved registers and the stack pointer; no system call, unlike swapcontext.
__attribute__((naked, noinline)) void switch_stack(void**, void*) {
  __asm__ volatile(
      "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15;"
      "movq %rsp, (%rdi); movq %rsi, %rsp;"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp; ret");
}
#endif

void switch_to(Fiber& from, Fiber& to) {
  current.thread = &to;
#ifdef VS_EMU_ASAN
  const bool home = &to == &scheduler.home;
  __sanitizer_start_switch_fiber(from.state == Fiber::returned ? nullptr : &from.fake_stack,
                                 home ? scheduler.home_bottom : to.stack.get(),
                                 home ? scheduler.home_size : kStackBytes);
#endif
#ifdef VS_EMU_TSAN
  __tsan_switch_to_fiber(to.tsan, 1);
#endif
#if defined(__x86_64__)
  switch_stack(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#ifdef VS_EMU_ASAN
  const void* bottom;
  std::size_t size;
  __sanitizer_finish_switch_fiber(from.fake_stack, &bottom, &size);
#endif
}

void park() { switch_to(self(), scheduler.home); }

void run_fiber() {
#ifdef VS_EMU_ASAN
  // Where the launching stack lies: the first switch tells.
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.home_bottom, &scheduler.home_size);
#endif
  __tsan_acquire(&scheduler.start_edge);
  try {
    (*scheduler.thread)();
  } catch (...) {
    scheduler.error = std::current_exception();
  }
  __tsan_release(&scheduler.end_edge);
  self().state = Fiber::returned;
  ++scheduler.returned;
  park();
  std::abort();
}

void prepare_stack(Fiber& fiber) {
  if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
#ifdef VS_EMU_ASAN
  // Frames of a fiber that never unwound.
  __asan_unpoison_memory_region(fiber.stack.get(), kStackBytes);
#endif
#ifdef VS_EMU_TSAN
  if (fiber.tsan == nullptr) fiber.tsan = __tsan_create_fiber(0);
#endif
#if defined(__x86_64__)
  const auto top = reinterpret_cast<std::uintptr_t>(fiber.stack.get()) + kStackBytes;
  auto** sp = reinterpret_cast<void**>(top & ~std::uintptr_t{15});
  *--sp = nullptr;  // where run_fiber() would return to
  *--sp = reinterpret_cast<void*>(&run_fiber);
  for (int saved = 0; saved < 6; ++saved) *--sp = nullptr;
  fiber.stack_pointer = sp;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_fiber, 0);
#endif
}

void prepare(Fiber& fiber, unsigned linear) {
  const dim3& shape = current.block_shape;
  fiber.linear = linear;
  fiber.index = {linear % shape.x, linear / shape.x % shape.y, linear / (shape.x * shape.y)};
  fiber.state = Fiber::ready;
  prepare_stack(fiber);
}

std::string block_name() {
  return "block (" + std::to_string(current.block.x) + "," + std::to_string(current.block.y) + "," +
         std::to_string(current.block.z) + ")";
}

std::string who_waits() {
  std::string text = "deadlock in " + block_name() + ": " + std::to_string(scheduler.returned) +
                     " threads returned, waiting:";
  int shown = 0;
  for (unsigned i = 0; i < scheduler.count && shown < 8; ++i)
    if (scheduler.fibers[i]->state != Fiber::returned) {
      text += " t" + std::to_string(i) + " in " + scheduler.fibers[i]->where;
      ++shown;
    }
  return text;
}

// A thread that has returned never counts as arrived at a barrier.
bool release_barrier() {
  if (scheduler.at_barrier != scheduler.count) return false;
  scheduler.at_barrier = 0;
  for (unsigned i = 0; i < scheduler.count; ++i) scheduler.fibers[i]->state = Fiber::ready;
  return true;
}

void run_block(std::vector<unsigned>& order, std::mt19937_64* random) {
  scheduler.at_barrier = scheduler.returned = 0;
  std::fill(scheduler.arrived.begin(), scheduler.arrived.end(), 0u);
  for (unsigned i = 0; i < scheduler.count; ++i) prepare(*scheduler.fibers[i], i);
  while (scheduler.returned < scheduler.count) {
    bool progress = false;
    if (random != nullptr) std::shuffle(order.begin(), order.end(), *random);
    for (const unsigned i : order) {
      if (scheduler.fibers[i]->state != Fiber::ready) continue;
      progress = true;
      switch_to(scheduler.home, *scheduler.fibers[i]);
      if (scheduler.error) std::rethrow_exception(std::exchange(scheduler.error, nullptr));
    }
    if (!release_barrier() && !progress) throw Error(who_waits());
  }
}

void require_shape(dim3 grid, dim3 block, std::size_t shared_bytes) {
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > kMostThreads || block.z > 64)
    throw Error("a block cannot have " + std::to_string(threads) + " threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535)
    throw Error("bad grid");
  if (shared_bytes > kMostShared)
    throw Error(std::to_string(shared_bytes) + " bytes of shared memory are more than there are");
}

// Where the fault was.
[[noreturn]] void rethrow_with_place() {
  try {
    throw;
  } catch (const Error& error) {
    throw Error(std::string(error.what()) + ", " + block_name());
  }
}

// Nothing of one launch is left for the next, also if it ended with an error. Threads then stay
// where they wait, which is also where they said what they had done.
struct Finish {
  ~Finish() {
    __tsan_acquire(&scheduler.end_edge);
    __tsan_acquire(&scheduler.barrier_edge);
    for (std::uint32_t& arrived : scheduler.arrived) __tsan_acquire(&arrived);
    scheduler.error = nullptr;
    current = Current{};
  }
};

}  // namespace

void run_grid(dim3 grid, dim3 block, std::size_t shared_bytes,
              const std::function<void()>& thread) {
  require_shape(grid, block, shared_bytes);
  // Freed after what its threads did is over.
  std::vector<std::unique_ptr<unsigned char[]>> shared;
  const Finish finish;
  scheduler.count = block.x * block.y * block.z;
  current.grid_shape = grid;
  current.block_shape = block;
  scheduler.thread = &thread;
  scheduler.arrived.resize((scheduler.count + 31) / 32);
  while (scheduler.fibers.size() < scheduler.count)
    scheduler.fibers.push_back(std::make_unique<Fiber>());
  std::vector<unsigned> order(scheduler.count);
  for (unsigned i = 0; i < scheduler.count; ++i) order[i] = i;
  std::mt19937_64 random(seed());
  std::vector<std::uint64_t> blocks(std::uint64_t{grid.x} * grid.y * grid.z);
  for (std::uint64_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
  if (seed() != 0) std::shuffle(blocks.begin(), blocks.end(), random);
#ifdef VS_EMU_TSAN
  scheduler.home.tsan = __tsan_get_current_fiber();
#endif
  for (const std::uint64_t number : blocks) {
    current.block = {unsigned(number % grid.x), unsigned(number / grid.x % grid.y),
                     unsigned(number / (std::uint64_t{grid.x} * grid.y))};
#ifndef VS_EMU_TSAN
    shared.clear();  // there, freeing it would count as an access that nothing orders
#endif
    shared.emplace_back(shared_bytes != 0 ? new unsigned char[shared_bytes] : nullptr);
    if (shared_bytes != 0) std::memset(shared.back().get(), kPoison, shared_bytes);
    current.shared = shared.back().get();
    // Nothing is acquired before the last block: for the thread sanitizer blocks are not ordered,
    // and what one of them writes no other may touch.
    __tsan_release(&scheduler.start_edge);
#ifdef VS_EMU_TSAN
    // Thread i of two blocks is not one fiber, which would order them.
    std::rotate(scheduler.fibers.begin(), scheduler.fibers.begin() + 1,
                scheduler.fibers.begin() + scheduler.count);
#endif
    try {
      run_block(order, seed() != 0 ? &random : nullptr);
    } catch (const Error&) {
      rethrow_with_place();
    }
    check_left(current.shared, shared_bytes);
  }
}

void block_barrier() {
  Fiber& fiber = self();
  fiber.where = "__syncthreads";
  fiber.state = Fiber::at_barrier;
  ++scheduler.at_barrier;
  __tsan_release(&scheduler.barrier_edge);
  park();
  __tsan_acquire(&scheduler.barrier_edge);
}

namespace {

// The last lane is in: everybody's result is worked out now, so that no place is read after its
// next use.
void complete_warp_call(WarpCall call, std::uint32_t mask, unsigned base, const char* where) {
  std::uint64_t ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    const Fiber& other = *scheduler.fibers[base + lane];
    if (other.mask != mask || std::strcmp(other.where, where) != 0)
      throw Error(std::string(where) + ": lanes disagree on the mask or the call");
    ballot |= std::uint64_t{other.value != 0} << lane;
  }
  for (unsigned lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    Fiber& other = *scheduler.fibers[base + lane];
    if (call == WarpCall::shuffle && (mask >> (other.source & 31) & 1) == 0)
      throw Error(std::string(where) + ": the source lane is not in the mask");
    other.result =
        call == WarpCall::shuffle ? scheduler.fibers[base + (other.source & 31)]->value : ballot;
    other.state = Fiber::ready;
  }
}

}  // namespace

std::uint64_t warp_call(WarpCall call, std::uint32_t mask, std::uint64_t value, unsigned source,
                        const char* where) {
  Fiber& fiber = self();
  const unsigned lane = fiber.linear & 31;
  const unsigned base = fiber.linear & ~31u;
  if ((mask >> lane & 1) == 0)
    throw Error(std::string(where) + ": the calling lane is not in its own mask");
  const unsigned lanes = std::min(32u, scheduler.count - base);
  if (lanes < 32 && mask >> lanes != 0)
    throw Error(std::string(where) + ": the mask names lanes that the block does not have");
  fiber.mask = mask;
  fiber.value = value;
  fiber.source = source;
  fiber.where = where;
  fiber.state = Fiber::at_warp_call;
  std::uint32_t& arrived = scheduler.arrived[base / 32];
  __tsan_release(&arrived);
  arrived |= 1u << lane;
  if ((arrived & mask) != mask) {
    park();
  } else {
    arrived &= ~mask;
    complete_warp_call(call, mask, base, where);
  }
  __tsan_acquire(&arrived);
  return fiber.result;
}

}  // namespace vs_emu
