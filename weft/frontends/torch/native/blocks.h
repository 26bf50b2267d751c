// Blocks of a virtual GPU's memory, as weft/frontends/torch/blocks.py has them: the same fields, lists and rules.
//
// Requests in bytes go in, places in segments and counts come out. Everything here is called with Python's lock held,
// except give_back. The Python class above it (CachingAllocator) makes segments and reads the fields.
#pragma once

#include <Python.h>

#include <cstdint>
#include <mutex>
#include <vector>

namespace weft {

struct Kind {
  PyObject_HEAD
  bool small;
  int64_t bytes, bytes_peak, bytes_total;
  int64_t count, count_peak, count_total;
  int64_t requested, requested_peak, requested_total;
  int64_t inactive, inactive_peak, inactive_total;
  int64_t inactive_bytes, inactive_bytes_peak, inactive_bytes_total;
  PyObject *free, *segments, *reserved;
};

// previous and next: neighbours in the segment, owned, null at its ends.
struct Block {
  PyObject_HEAD
  int64_t address, size, requested, stream;
  bool allocated;
  Kind *kind;
  PyObject *free_list, *pool;
  Block *previous, *next;
};

struct Blocks {
  PyObject_HEAD
  bool suspended;
  Kind *small, *large;
  int64_t bytes_peak, count_peak, requested_peak, inactive_peak, inactive_bytes_peak;
  PyObject *heads, *capture, *trace;
  bool busy;
  unsigned long owner;  // the thread that is busy with it
  std::mutex *returned_lock;
  std::vector<Block *> *returned;  // given back while somebody was busy, or without Python's lock
};

// Adds the types to a module, with Counter from Python. False with a Python error set.
bool add_block_types(PyObject *module, PyObject *counter);

// A block for a request, as a new reference. Null with a Python error set (OutOfMemoryError), or without one while the
// allocator is suspended.
Block *take_block(Blocks *blocks, int64_t requested, int64_t stream);

// Gives a block back and its reference with it. May be called at any moment, by any thread, with or without the lock.
void give_back(Blocks *blocks, Block *block);

bool is_blocks(PyObject *object);

}  // namespace weft
