#include "layer_choice.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <string_view>

#include "text.h"

namespace nibble::cli {
namespace {

constexpr std::string_view kWeightSuffix = ".weight";
constexpr std::array<int32_t, 3> kSmallerGroups = {64, 32, 16};

bool is_one_of(std::string_view text, std::initializer_list<std::string_view> list) {
  return std::find(list.begin(), list.end(), text) != list.end();
}

std::vector<std::string> lower_case_parts(const std::string& module) {
  std::vector<std::string> parts(1);
  for (char c : module) {
    if (c == '.') {
      parts.emplace_back();
    } else {
      parts.back() += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
  }
  return parts;
}

// "ln", "ln_1", "ln1", "ln_f"
bool is_ln(const std::string& part) {
  return part.starts_with("ln") && part.size() <= 5 && (part.size() == 2 || !std::isalpha(part[2]));
}

bool is_head(const std::string& part) {
  return is_one_of(part, {"lm_head", "embed_out", "classifier", "score", "pooler", "cls",
                          "qa_outputs", "output_projection"});
}

// Sets the group that will be used for [n, k], or says why there is none.
std::string fit_format(const ChoiceOptions& options, ChosenLayer* chosen) {
  Format& format = chosen->layer.format;
  format = as_stored(options.format, options.spelling);
  const bool divides = format.group == 0 || chosen->k % format.group == 0;
  // nvfp4, mxfp4 and stored nf4 are their group; the others may shrink theirs.
  const bool fixed = format.scale == DType::kE4M3 || format.scale == DType::kE8M0 ||
                     format.element == Element::kNF4;
  if (!divides && !options.allow_short_group && !fixed) {
    for (int32_t group : kSmallerGroups) {
      if (group < options.format.group && chosen->k % group == 0) {
        format.group = group;
        chosen->smaller_group = true;
        break;
      }
    }
  }
  const auto spelling = output_spelling(format, chosen->n, chosen->k, options.spelling);
  if (!spelling.ok()) return spelling.status().message();
  if (divides || chosen->smaller_group) return "";
  if (options.allow_short_group) {
    chosen->short_group = true;
    return "";
  }
  return fmt::format("K = {} is no multiple of {} (--allow-short-group writes it all the same)",
                     chosen->k,
                     fixed ? fmt::format("group {}", format.group) : "16, the smallest group");
}

// The reason why the tensor cannot be a quantized layer at all; empty when it can.
std::string impossible(const TensorInfo& tensor, const ChoiceOptions& options,
                       ChosenLayer* chosen) {
  if (tensor.shape.size() != 2) return "no matrix";
  if (!tensor.dtype || !is_activation_dtype(*tensor.dtype)) {
    return "stored as " + printable(tensor.dtype_name) + ", not as F32, F16 or BF16";
  }
  if (!tensor.name.ends_with(kWeightSuffix) || tensor.name.size() == kWeightSuffix.size()) {
    return "its name does not end in .weight";
  }
  chosen->tensor = tensor.name;
  chosen->layer.name = tensor.name.substr(0, tensor.name.size() - kWeightSuffix.size());
  chosen->n = tensor.shape[0];
  chosen->k = tensor.shape[1];
  chosen->stored_bytes = tensor.bytes;
  if (chosen->n < 1 || chosen->k < 1) return "empty";
  return fit_format(options, chosen);
}

}  // namespace

Result<Patterns> Patterns::compile(const std::vector<std::string>& expressions,
                                   const char* option) {
  Patterns patterns;
  for (const std::string& expression : expressions) {
    try {
      patterns.list_.emplace_back(expression);
    } catch (const std::regex_error& e) {
      return invalid_argument(
          fmt::format("{} '{}' is no regular expression: {}", option, expression, e.what()));
    }
  }
  return patterns;
}

bool Patterns::match(const std::string& name) const {
  return std::any_of(list_.begin(), list_.end(),
                     [&](const std::regex& each) { return std::regex_search(name, each); });
}

Format as_stored(const Format& format, const std::string& spelling) {
  constexpr int64_t kAnyN = 2, kAnyK = 128;
  Format stored = format;
  for (const DType scale : {format.scale, DType::kF16, DType::kF32}) {
    stored.scale = scale;
    if (output_spelling(stored, kAnyN, kAnyK, spelling).ok()) return stored;
  }
  return format;
}

std::string default_skip_reason(const std::string& module) {
  const std::vector<std::string> parts = lower_case_parts(module);
  const std::string& last = parts.back();
  if (std::any_of(parts.begin(), parts.end(), is_head)) return "output head";
  if (last.find("embed") != std::string::npos || last.ends_with("_emb") ||
      is_one_of(last, {"emb", "wte", "wpe", "shared", "relative_attention_bias"})) {
    return "embedding";
  }
  if (last.find("norm") != std::string::npos || is_ln(last)) return "norm";
  if (is_one_of(last, {"gate", "router"})) return "router";
  return "";
}

Result<LayerChoice> choose_layers(std::span<const TensorInfo> tensors,
                                  const ChoiceOptions& options) {
  NIBBLE_ASSIGN_OR_RETURN(const Patterns include, Patterns::compile(options.include, "--include"));
  NIBBLE_ASSIGN_OR_RETURN(const Patterns exclude, Patterns::compile(options.exclude, "--exclude"));
  LayerChoice choice;
  for (const TensorInfo& tensor : tensors) {
    ChosenLayer chosen;
    std::string reason = impossible(tensor, options, &chosen);
    bool linear_layer = false;
    const bool asked_for = include.match(tensor.name);
    if (exclude.match(tensor.name)) {
      reason = "--exclude";
    } else if (!include.empty() && !asked_for) {
      reason = "not matched by --include";
    } else if (asked_for && !reason.empty() && chosen.k > 0) {
      return unsupported(fmt::format("{} cannot be quantized to {}: {}", printable(tensor.name),
                                     options.format.name(), reason));
    } else if (!asked_for && chosen.k > 0) {
      const std::string by_default = default_skip_reason(chosen.layer.name);
      linear_layer = by_default.empty();
      if (!linear_layer) reason = by_default;
    }
    if (reason.empty()) {
      choice.chosen.push_back(std::move(chosen));
    } else {
      choice.skipped.push_back(
          {tensor.name, tensor.shape, tensor.dtype_name, std::move(reason), linear_layer});
    }
  }
  return choice;
}

}  // namespace nibble::cli
