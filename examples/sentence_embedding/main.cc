// Sentence similarity in FP32 and in 4 bits, side by side, on the public API of Nibble.
#include <unistd.h>

#include <charconv>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bert.h"
#include "comparison.h"
#include "nibble/core.h"
#include "report.h"
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
  const bool shows_progress = isatty(STDERR_FILENO) != 0;
  for (int round = -1; round < options.rounds; ++round) {
    if (shows_progress) std::fprintf(stderr, "\rround %d of %d ", round + 1, options.rounds);
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
  if (shows_progress) std::fputs("\r                    \r", stderr);
  for (Variant& variant : variants) {
    for (size_t p = 0; p < pairs.size(); ++p) {
      variant.similarities.push_back(
          cosine(variant.embeddings[2 * p], variant.embeddings[2 * p + 1]));
    }
  }
  return nibble::ok_status();
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
    const std::string format = bert.dense_format();
    const std::string computed = format == "fp32" ? "" : nibble::compute_name(compute);
    variants.push_back({format, computed, std::move(bert), {}, {}, {}});
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
  (options.json ? print_json : print_table)({options.model, pool->num_threads(), pairs, variants});
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
