#include "report.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>

#include "comparison.h"

namespace sentence_embedding {
namespace {

struct Figures {
  double cosine_mean = 0, cosine_min = 1;  ///< of embeddings to the reference's
  OrderChange order;
  double reference_correlation = 0, grade_correlation = 0;
  double bits_per_weight = 0;
  double ms = 0, speedup = 0;  ///< speedup: median of the ratios within a round
};

Figures figures_of(const Variant& variant, const Comparison& all) {
  const Variant& reference = all.variants[0];
  Figures out;
  for (size_t i = 0; i < variant.embeddings.size(); ++i) {
    const double value = cosine(variant.embeddings[i], reference.embeddings[i]);
    out.cosine_mean += value / static_cast<double>(variant.embeddings.size());
    out.cosine_min = std::min(out.cosine_min, value);
  }
  std::vector<double> grades, ratios;
  for (const SentencePair& pair : all.pairs) grades.push_back(pair.grade);
  for (size_t r = 0; r < variant.round_ms.size(); ++r) {
    ratios.push_back(reference.round_ms[r] / variant.round_ms[r]);
  }
  out.order = order_change(reference.similarities, variant.similarities);
  out.reference_correlation = rank_correlation(reference.similarities, variant.similarities);
  out.grade_correlation = rank_correlation(grades, variant.similarities);
  out.bits_per_weight = 8 * static_cast<double>(variant.bert.dense_bytes()) /
                        static_cast<double>(variant.bert.dense_weights());
  out.ms = median(variant.round_ms);
  out.speedup = median(ratios);
  return out;
}

const char* this_isa() { return nibble::isa_name(nibble::Device::this_cpu().best_isa()); }

/// "4 of 231", or "-" for the reference.
std::string swapped_text(const Figures& figures, bool is_reference) {
  if (is_reference) return "-";
  return std::to_string(figures.order.swapped) + " of " + std::to_string(figures.order.comparisons);
}

void print_similarities(const Comparison& all) {
  std::printf(
      "Similarity of sentences, from most to least alike in FP32\n"
      "(grade: what a person says, 5 same meaning .. 0 unrelated)\n\n");
  std::printf("  %5s", "");
  for (const Variant& variant : all.variants) std::printf("  %9s", variant.format.c_str());
  std::printf("\n  grade");
  for (const Variant& variant : all.variants) std::printf("  %9s", variant.compute.c_str());
  std::printf("   sentences\n");
  std::vector<size_t> order(all.pairs.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::sort(order, std::greater{},
                    [&](size_t p) { return all.variants[0].similarities[p]; });
  const int indent = static_cast<int>(7 + 11 * all.variants.size() + 3);
  for (const size_t p : order) {
    std::printf("  %5g", all.pairs[p].grade);
    for (const Variant& variant : all.variants) std::printf("  %9.3f", variant.similarities[p]);
    std::printf("   %s\n%*s%s\n", all.pairs[p].sentences[0].c_str(), indent, "",
                all.pairs[p].sentences[1].c_str());
  }
}

}  // namespace

void print_table(const Comparison& all) {
  print_similarities(all);
  const Bert& reference = all.variants[0].bert;
  std::printf("\n%zu pairs of sentences; %lld layers, hidden size %lld, %.1f M weights in dense ",
              all.pairs.size(), static_cast<long long>(reference.config().layers),
              static_cast<long long>(reference.config().hidden),
              static_cast<double>(reference.dense_weights()) / 1e6);
  std::printf("layers; %d thread%s, %s\n\n", all.threads, all.threads == 1 ? "" : "s", this_isa());
  constexpr char kRow[] = "  %-10s %-6s  %6s  %7s  %8s  %8s  %8s  %13s  %11s  %9s  %7s\n";
  std::printf(kRow, "format", "x in", "file", "dense", "bits per", "cosine", "to FP32",
              "order of the", "correlation", "time per", "speed");
  std::printf(kRow, "", "layers", "MB", "MB", "weight", "mean", "worst", "pairs changed",
              "with grades", "sentence", "");
  std::vector<Figures> figures;
  for (const Variant& variant : all.variants) {
    const Figures& f = figures.emplace_back(figures_of(variant, all));
    std::printf("  %-10s %-6s  %6.1f  %7.2f  %8.2f  %8.4f  %8.4f  %13s  %11.3f  %6.2f ms  %6.2fx\n",
                variant.format.c_str(), variant.compute.c_str(),
                static_cast<double>(variant.bert.file_bytes()) / 1e6,
                static_cast<double>(variant.bert.dense_bytes()) / 1e6, f.bits_per_weight,
                f.cosine_mean, f.cosine_min, swapped_text(f, figures.size() == 1).c_str(),
                f.grade_correlation, f.ms, f.speedup);
  }
  std::printf("\n");
  for (size_t v = 1; v < figures.size(); ++v) {
    const Figures& f = figures[v];
    std::printf("%s: ", all.variants[v].name().c_str());
    if (f.order.swapped == 0) {
      std::printf("the ranking of the pairs is kept.\n");
    } else {
      std::printf(
          "the ranking of the pairs is not kept exactly: %s comparisons turn round, the "
          "widest between pairs %.3f apart in FP32 (rank correlation %.4f).\n",
          swapped_text(f, false).c_str(), f.order.widest_gap, f.reference_correlation);
    }
  }
}

void print_json(const Comparison& all) {
  using Json = nlohmann::ordered_json;
  Json out = {{"model", all.model}, {"pairs", all.pairs.size()}, {"threads", all.threads},
              {"isa", this_isa()},  {"variants", Json::array()}, {"similarities", Json::array()}};
  for (const Variant& variant : all.variants) {
    const Figures f = figures_of(variant, all);
    out["variants"].push_back({{"name", variant.name()},
                               {"format", variant.format},
                               {"compute", variant.compute},
                               {"file_bytes", variant.bert.file_bytes()},
                               {"dense_bytes", variant.bert.dense_bytes()},
                               {"dense_weights", variant.bert.dense_weights()},
                               {"bits_per_weight", f.bits_per_weight},
                               {"cosine_mean", f.cosine_mean},
                               {"cosine_min", f.cosine_min},
                               {"ranking_kept", f.order.swapped == 0},
                               {"order_comparisons", f.order.comparisons},
                               {"order_swapped", f.order.swapped},
                               {"order_widest_gap", f.order.widest_gap},
                               {"rank_correlation_fp32", f.reference_correlation},
                               {"rank_correlation_grades", f.grade_correlation},
                               {"ms_per_sentence", f.ms},
                               {"round_ms", variant.round_ms},
                               {"speedup", f.speedup}});
  }
  for (size_t p = 0; p < all.pairs.size(); ++p) {
    Json row = {{"grade", all.pairs[p].grade},
                {"sentences", {all.pairs[p].sentences[0], all.pairs[p].sentences[1]}}};
    for (const Variant& variant : all.variants) row[variant.name()] = variant.similarities[p];
    out["similarities"].push_back(std::move(row));
  }
  // A pairs file need not be valid UTF-8; JSON must be.
  std::printf("%s\n", out.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
}

}  // namespace sentence_embedding
