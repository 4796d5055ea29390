// Sentence similarity in FP32 and in 4 bits, side by side, on the public API of Nibble.
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "bert.h"
#include "comparison.h"
#include "nibble/core.h"
#include "wordpiece.h"

namespace sentence_embedding {
namespace {

using nibble::Result;
using nibble::Status;
using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

constexpr char kUsage[] =
    R"(usage: sentence_embedding --model DIR [--quantized DIR]... --pairs FILE [options]
       sentence_embedding --model DIR --embed FILE [options]

Compares a BERT sentence-embedding model with quantized copies of it, or prints embeddings.

  --model DIR        Hugging Face directory: model.safetensors, config.json, vocab.txt
  --quantized DIR    a copy made by `nibble quantize`; may be given several times
  --pairs FILE       lines of grade <tab> sentence <tab> sentence; # begins a comment line
  --embed FILE       JSON array of texts ('-': standard input); prints their token ids and
                     embeddings by --model as JSON
  --compute LIST     exact, int8 or exact,int8: what 4-bit layers may do with activations
                     (default exact: they are never rounded)
  --threads N        threads of a forward pass (default 1; 0: all this process may use)
  --rounds N         timed passes over all sentences (default 7); the median counts
  --json             figures as JSON instead of a table
  --help

Exit codes: 0 done; 1 a file or a model could not be used; 2 wrong usage.
)";

struct Options {
  std::string model, pairs, embed;
  std::vector<std::string> quantized;
  std::vector<nibble::Compute> computes = {nibble::Compute::kExact};
  int threads = 1, rounds = 7;
  bool json = false, help = false;
};

struct SentencePair {
  double grade = 0;
  std::string sentences[2];
};

/// One encoder under comparison and what was seen of it.
struct Variant {
  std::string name;
  Bert bert;
  std::vector<std::vector<float>> embeddings;  ///< two a pair
  std::vector<double> similarities;            ///< one a pair
  std::vector<double> round_ms;                ///< milliseconds a sentence, one a round
};

// ------------------------------------------------------------------------------------ input

Result<int> parse_count(std::string_view flag, std::string_view text, int smallest) {
  constexpr int kLargest = 1024;
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < smallest ||
      value > kLargest) {
    return nibble::invalid_argument(std::string(flag) + ": '" + std::string(text) +
                                    "' is not a number within " + std::to_string(smallest) +
                                    " .. " + std::to_string(kLargest));
  }
  return value;
}

Result<Options> parse_options(std::span<char*> args) {
  Options out;
  for (size_t i = 1; i < args.size(); ++i) {
    const std::string flag = args[i];
    if (flag == "--help" || flag == "-h") {
      out.help = true;
      return out;
    }
    if (flag == "--json") {
      out.json = true;
      continue;
    }
    if (++i == args.size()) {
      return nibble::invalid_argument("'" + flag + "' is no option, or lacks its value");
    }
    const std::string value = args[i];
    if (flag == "--model") {
      out.model = value;
    } else if (flag == "--quantized") {
      out.quantized.push_back(value);
    } else if (flag == "--pairs") {
      out.pairs = value;
    } else if (flag == "--embed") {
      out.embed = value;
    } else if (flag == "--threads") {
      NIBBLE_ASSIGN_OR_RETURN(out.threads, parse_count(flag, value, 0));
    } else if (flag == "--rounds") {
      NIBBLE_ASSIGN_OR_RETURN(out.rounds, parse_count(flag, value, 1));
    } else if (flag == "--compute") {
      out.computes.clear();
      for (size_t begin = 0; begin <= value.size();) {
        const size_t end = std::min(value.find(',', begin), value.size());
        NIBBLE_ASSIGN_OR_RETURN(const nibble::Compute compute,
                                nibble::parse_compute(value.substr(begin, end - begin)));
        out.computes.push_back(compute);
        begin = end + 1;
      }
    } else {
      return nibble::invalid_argument("unknown option '" + flag + "'");
    }
  }
  if (out.model.empty()) return nibble::invalid_argument("--model is missing");
  if (out.pairs.empty() == out.embed.empty()) {
    return nibble::invalid_argument("give either --pairs or --embed");
  }
  return out;
}

Result<std::vector<SentencePair>> read_pairs(const std::string& path) {
  std::ifstream file(path);
  if (!file) return nibble::io_error(path + ": cannot be opened");
  std::vector<SentencePair> pairs;
  std::string line;
  for (int number = 1; std::getline(file, line); ++number) {
    if (line.empty() || line[0] == '#') continue;
    const size_t first = line.find('\t');
    const size_t second = first == std::string::npos ? first : line.find('\t', first + 1);
    SentencePair pair;
    const auto parsed =
        std::from_chars(line.data(), line.data() + std::min(first, line.size()), pair.grade);
    if (second == std::string::npos || parsed.ec != std::errc() ||
        parsed.ptr != line.data() + first) {
      return nibble::corrupt_file(path + ":" + std::to_string(number) +
                                  ": not grade <tab> sentence <tab> sentence");
    }
    pair.sentences[0] = line.substr(first + 1, second - first - 1);
    pair.sentences[1] = line.substr(second + 1);
    pairs.push_back(std::move(pair));
  }
  if (pairs.size() < 2) return nibble::corrupt_file(path + ": fewer than two pairs");
  return pairs;
}

// ------------------------------------------------------------------------------------ work

Result<std::vector<float>> embed_text(const WordPiece& tokenizer, Bert& bert,
                                      const std::string& text) {
  std::vector<float> embedding(static_cast<size_t>(bert.config().hidden));
  NIBBLE_RETURN_IF_ERROR(bert.embed(tokenizer.encode(text, bert.config().max_tokens), embedding));
  return embedding;
}

Status print_embeddings(const Options& options, const WordPiece& tokenizer, Bert& bert) {
  std::string text;
  if (options.embed == "-") {
    text.assign(std::istreambuf_iterator<char>(std::cin), {});
  } else {
    std::ifstream file(options.embed, std::ios::binary);
    if (!file) return nibble::io_error(options.embed + ": cannot be opened");
    text.assign(std::istreambuf_iterator<char>(file), {});
  }
  const Json texts = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!texts.is_array()) return nibble::corrupt_file(options.embed + ": not a JSON array of texts");
  Json out = Json::array();
  for (const Json& entry : texts) {
    if (!entry.is_string()) {
      return nibble::corrupt_file(options.embed + ": entry " + std::to_string(out.size()) +
                                  " is not a string");
    }
    const auto sentence = entry.get<std::string>();
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<float> embedding,
                            embed_text(tokenizer, bert, sentence));
    out.push_back(
        {{"ids", tokenizer.encode(sentence, bert.config().max_tokens)}, {"embedding", embedding}});
  }
  std::cout << out.dump() << "\n";
  return nibble::ok_status();
}

/// Embeds every sentence with every variant, `rounds` times and a first time to warm up. Variants
/// take turns within a round, so that a busy moment of the machine meets all of them.
Status measure(const Options& options, const WordPiece& tokenizer,
               const std::vector<SentencePair>& pairs, std::vector<Variant>& variants) {
  for (int round = -1; round < options.rounds; ++round) {
    for (Variant& variant : variants) {
      variant.embeddings.clear();
      const Clock::time_point start = Clock::now();
      for (const SentencePair& pair : pairs) {
        for (const std::string& sentence : pair.sentences) {
          NIBBLE_ASSIGN_OR_RETURN(std::vector<float> embedding,
                                  embed_text(tokenizer, variant.bert, sentence));
          variant.embeddings.push_back(std::move(embedding));
        }
      }
      const std::chrono::duration<double, std::milli> took = Clock::now() - start;
      if (round >= 0) {
        variant.round_ms.push_back(took.count() / static_cast<double>(variant.embeddings.size()));
      }
    }
  }
  for (Variant& variant : variants) {
    for (size_t p = 0; p < pairs.size(); ++p) {
      variant.similarities.push_back(
          cosine(variant.embeddings[2 * p], variant.embeddings[2 * p + 1]));
    }
  }
  return nibble::ok_status();
}

// ------------------------------------------------------------------------------------ report

struct Figures {
  double cosine_mean = 1, cosine_min = 1;
  OrderChange order;
  double reference_correlation = 1, grade_correlation = 0;
  double ms = 0, speedup = 1;
};

Figures figures_of(const Variant& variant, const Variant& reference,
                   const std::vector<double>& grades) {
  Figures out;
  out.cosine_mean = 0;
  for (size_t i = 0; i < variant.embeddings.size(); ++i) {
    const double value = cosine(variant.embeddings[i], reference.embeddings[i]);
    out.cosine_mean += value / static_cast<double>(variant.embeddings.size());
    out.cosine_min = std::min(out.cosine_min, value);
  }
  out.order = order_change(reference.similarities, variant.similarities);
  out.reference_correlation = rank_correlation(reference.similarities, variant.similarities);
  out.grade_correlation = rank_correlation(grades, variant.similarities);
  out.ms = median(variant.round_ms);
  std::vector<double> ratios;
  for (size_t r = 0; r < variant.round_ms.size(); ++r) {
    ratios.push_back(reference.round_ms[r] / variant.round_ms[r]);
  }
  out.speedup = median(ratios);
  return out;
}

double megabytes(int64_t bytes) { return static_cast<double>(bytes) / 1e6; }

void print_json(const Options& options, const std::vector<SentencePair>& pairs,
                const std::vector<Variant>& variants, const std::vector<Figures>& figures) {
  Json out = {{"model", options.model},
              {"pairs", pairs.size()},
              {"threads", options.threads},
              {"rounds", options.rounds},
              {"isa", nibble::isa_name(nibble::Device::this_cpu().best_isa())},
              {"variants", Json::array()},
              {"similarities", Json::array()}};
  for (size_t v = 0; v < variants.size(); ++v) {
    const Variant& variant = variants[v];
    const Figures& f = figures[v];
    out["variants"].push_back({{"name", variant.name},
                               {"format", variant.bert.dense_format()},
                               {"file_bytes", variant.bert.file_bytes()},
                               {"dense_bytes", variant.bert.dense_bytes()},
                               {"dense_weights", variant.bert.dense_weights()},
                               {"cosine_mean", f.cosine_mean},
                               {"cosine_min", f.cosine_min},
                               {"ranking_kept", f.order.swapped == 0},
                               {"order_comparisons", f.order.comparisons},
                               {"order_swapped", f.order.swapped},
                               {"order_widest_gap", f.order.widest_gap},
                               {"rank_correlation_fp32", f.reference_correlation},
                               {"rank_correlation_grades", f.grade_correlation},
                               {"ms_per_sentence", f.ms},
                               {"speedup", f.speedup}});
  }
  for (size_t p = 0; p < pairs.size(); ++p) {
    Json row = {{"grade", pairs[p].grade},
                {"sentences", {pairs[p].sentences[0], pairs[p].sentences[1]}}};
    for (const Variant& variant : variants) row[variant.name] = variant.similarities[p];
    out["similarities"].push_back(std::move(row));
  }
  std::cout << out.dump(2) << "\n";
}

void print_table(const Options& options, const std::vector<SentencePair>& pairs,
                 const std::vector<Variant>& variants, const std::vector<Figures>& figures) {
  const Bert& reference = variants[0].bert;
  std::printf(
      "Similarity of sentences, from most to least alike in FP32 (grade: 5 same meaning, "
      "0 unrelated)\n\n");
  std::printf("  grade");
  for (const Variant& variant : variants) std::printf("  %15s", variant.name.c_str());
  std::printf("   sentences\n");
  std::vector<size_t> order(pairs.size());
  for (size_t p = 0; p < order.size(); ++p) order[p] = p;
  std::ranges::sort(order, [&](size_t a, size_t b) {
    return variants[0].similarities[a] > variants[0].similarities[b];
  });
  const size_t indent = 7 + 17 * variants.size() + 3;
  for (const size_t p : order) {
    std::printf("  %5g", pairs[p].grade);
    for (const Variant& variant : variants) std::printf("  %15.3f", variant.similarities[p]);
    std::printf("   %s\n%*s%s\n", pairs[p].sentences[0].c_str(), static_cast<int>(indent), "",
                pairs[p].sentences[1].c_str());
  }

  std::printf(
      "\n%zu pairs, %lld layers of hidden size %lld, %.1f M weights in dense layers; "
      "%d thread%s, %s\n\n",
      pairs.size(), static_cast<long long>(reference.config().layers),
      static_cast<long long>(reference.config().hidden),
      static_cast<double>(reference.dense_weights()) / 1e6, options.threads,
      options.threads == 1 ? "" : "s", nibble::isa_name(nibble::Device::this_cpu().best_isa()));
  std::printf("  %-15s  %8s  %12s  %9s  %15s  %13s  %11s  %8s  %7s\n", "", "file", "dense layers",
              "bits per", "cosine to FP32", "order of the", "correlation", "time per", "speed");
  std::printf("  %-15s  %8s  %12s  %9s  %15s  %13s  %11s  %8s  %7s\n", "", "MB", "MB", "weight",
              "mean      min", "pairs changed", "with grades", "sentence", "");
  for (size_t v = 0; v < variants.size(); ++v) {
    const Bert& bert = variants[v].bert;
    const Figures& f = figures[v];
    const double bits =
        8 * static_cast<double>(bert.dense_bytes()) / static_cast<double>(bert.dense_weights());
    const std::string swapped =
        v == 0 ? "-"
               : std::to_string(f.order.swapped) + " of " + std::to_string(f.order.comparisons);
    std::printf("  %-15s  %8.1f  %12.2f  %9.2f  %7.4f  %6.4f  %13s  %11.3f  %5.2f ms  %6.2fx\n",
                variants[v].name.c_str(), megabytes(bert.file_bytes()),
                megabytes(bert.dense_bytes()), bits, f.cosine_mean, f.cosine_min, swapped.c_str(),
                f.grade_correlation, f.ms, f.speedup);
  }
  std::printf("\n");
  for (size_t v = 1; v < variants.size(); ++v) {
    const Figures& f = figures[v];
    if (f.order.swapped == 0) {
      std::printf("%s: the ranking of the pairs is kept.\n", variants[v].name.c_str());
    } else {
      std::printf(
          "%s: the ranking is not kept exactly: %lld of %lld comparisons turn round, all "
          "between pairs less than %.3f apart in FP32 (rank correlation %.4f).\n",
          variants[v].name.c_str(), static_cast<long long>(f.order.swapped),
          static_cast<long long>(f.order.comparisons), f.order.widest_gap + 0.0005,
          f.reference_correlation);
    }
  }
}

Status run(const Options& options) {
  NIBBLE_ASSIGN_OR_RETURN(const WordPiece tokenizer, WordPiece::load(options.model + "/vocab.txt"));
  const std::unique_ptr<nibble::ThreadPool> pool = nibble::make_thread_pool(options.threads);
  std::vector<Variant> variants;
  const auto add = [&](const std::string& directory, nibble::Compute compute) -> Status {
    NIBBLE_ASSIGN_OR_RETURN(Bert bert, Bert::load(directory, compute, pool.get()));
    if (tokenizer.size() != bert.config().vocabulary) {
      return nibble::corrupt_file(
          directory + ": vocab_size " + std::to_string(bert.config().vocabulary) +
          ", but vocab.txt has " + std::to_string(tokenizer.size()) + " pieces");
    }
    std::string name = bert.dense_format();
    if (name != "fp32" && compute != nibble::Compute::kExact) {
      name += std::string(" ") + nibble::compute_name(compute);
    }
    variants.push_back({std::move(name), std::move(bert), {}, {}, {}});
    return nibble::ok_status();
  };
  NIBBLE_RETURN_IF_ERROR(add(options.model, options.computes.front()));
  if (!options.embed.empty()) return print_embeddings(options, tokenizer, variants[0].bert);

  NIBBLE_ASSIGN_OR_RETURN(const std::vector<SentencePair> pairs, read_pairs(options.pairs));
  for (const std::string& directory : options.quantized) {
    for (const nibble::Compute compute : options.computes) {
      NIBBLE_RETURN_IF_ERROR(add(directory, compute));
    }
  }
  NIBBLE_RETURN_IF_ERROR(measure(options, tokenizer, pairs, variants));
  std::vector<double> grades;
  for (const SentencePair& pair : pairs) grades.push_back(pair.grade);
  std::vector<Figures> figures;
  for (const Variant& variant : variants) {
    figures.push_back(figures_of(variant, variants[0], grades));
  }
  Options shown = options;
  shown.threads = pool->num_threads();
  (options.json ? print_json : print_table)(shown, pairs, variants, figures);
  return nibble::ok_status();
}

}  // namespace
}  // namespace sentence_embedding

int main(int argc, char** argv) {
  const auto options = sentence_embedding::parse_options({argv, static_cast<size_t>(argc)});
  if (!options.ok()) {
    std::fprintf(stderr, "sentence_embedding: %s\n\n%s", options.status().message().c_str(),
                 sentence_embedding::kUsage);
    return 2;
  }
  if (options->help) {
    std::fputs(sentence_embedding::kUsage, stdout);
    return 0;
  }
  const nibble::Status status = sentence_embedding::run(*options);
  if (!status.ok()) {
    std::fprintf(stderr, "sentence_embedding: %s: %s\n", nibble::code_name(status.code()),
                 status.message().c_str());
    return 1;
  }
  return 0;
}
