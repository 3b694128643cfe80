// What distance-based rules do with a Gram matrix: which updates they select, and with which
// factors they combine them. All sums run over updates in their canonical order, in double.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rules/gram.h"
#include "rules/tile_rows.h"

namespace veilsum {

// The Gram matrix of rows that are means of updates.
Gram mixed_gram(const Gram& gram, const RowMix& mix);

// Squared distances, row-major: G_ii + G_jj - 2 G_ij, but never below zero, 0 on the diagonal.
std::vector<double> squared_distances(const Gram& gram);

// Krum's scores (Blanchard et al. 2017): the sum of the squared distances to the `neighbors`
// nearest others, added from the nearest on.
std::vector<double> krum_scores(const std::vector<double>& distances, std::size_t rows,
                                std::size_t neighbors);

// Bulyan's first step (El Mhamdi et al. 2018): `count` times the row that Krum selects among those
// that are left, with max(1, left - byzantine - 2) neighbours. Ties go to the first row.
std::vector<std::size_t> bulyan_selection(const std::vector<double>& distances, std::size_t rows,
                                          std::size_t byzantine, std::size_t count);

// For each row the `count` nearest, itself the first of them; of equally far ones the first.
std::vector<std::vector<std::size_t>> nearest_rows(const std::vector<double>& distances,
                                                   std::size_t rows, std::size_t count);

// Factors of the smoothed Weiszfeld iterates (Pillutla et al. 2022) from the weighted mean on.
// `smoothing` is in units of the Gram matrix.
std::vector<double> weiszfeld_factors(const Gram& gram, const std::vector<double>& weights,
                                      std::size_t iterations, double smoothing);

// Factors of centred clipping (Karimireddy et al. 2021) over the first `rows` rows, from the last
// row of the matrix as the centre, or from zero if there is no row more than that. The centre's
// factor is the last.
std::vector<double> clipping_factors(const Gram& gram, std::size_t rows, std::size_t iterations,
                                     double radius);

}  // namespace veilsum
