// How well a set of similarities keeps the order of another.
#ifndef NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_COMPARISON_H_
#define NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_COMPARISON_H_

#include <cstdint>
#include <span>

namespace sentence_embedding {

/// a . b / (|a| |b|) in double precision; 0 when one of them is zero.
double cosine(std::span<const float> a, std::span<const float> b);

/// Spearman's rank correlation: Pearson's correlation of the ranks, equal values sharing their mean
/// rank. Needs two values or more; 0 when all values of one side are equal.
double rank_correlation(std::span<const double> a, std::span<const double> b);

/// What happened to the order of `reference` in `other`.
struct OrderChange {
  int64_t comparisons = 0;  ///< pairs of entries that differ in the reference
  int64_t swapped = 0;      ///< of those, the ones that `other` orders the other way, or equally
  double widest_gap = 0;    ///< largest reference difference among the swapped ones
};
OrderChange order_change(std::span<const double> reference, std::span<const double> other);

double median(std::span<const double> values);

}  // namespace sentence_embedding

#endif  // NIBBLE_EXAMPLES_SENTENCE_EMBEDDING_COMPARISON_H_
