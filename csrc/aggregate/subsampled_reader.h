// Readers of subsampled updates.
#pragma once

#include <memory>
#include <vector>

#include "aggregate/update_reader.h"

namespace veilsum {

// `chunks` have passed check_update; `integers` reads group 2 of the same.
std::unique_ptr<UpdateReader> read_subsampled(const Layout& layout, std::vector<ChunkView> chunks,
                                              const UpdateForm& form,
                                              std::unique_ptr<UpdateReader> integers);

}  // namespace veilsum
