// The C interface between the core and cuda/, which is compiled by another compiler and
// need not be there at all. Every function reports failure by a nonzero result and a
// text; none throws, and none leaves a sticky error behind.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// What mask elements to compute.
struct vs_cuda_mask_request {
  const unsigned char* key;  // 32 bytes
  std::uint32_t stream;
  unsigned bits;
  std::uint64_t first;
  std::size_t count;
};

// words[i] = mask element request->first + i, computed on `device`.
int vs_cuda_mask_words(int device, const vs_cuda_mask_request* request, std::uint64_t* words,
                       char* error, std::size_t error_size);

}  // extern "C"
