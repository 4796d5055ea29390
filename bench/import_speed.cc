// How fast a checkpoint's layers become packed weights, on one core: GB of stored codes a second,
// for loading (file → QuantizedTensor), packing (→ cpu_panel16) and both.
//
//   import_speed [--repeats R] [--n N] [--k K] [PATH …]
//
// Without paths it makes one layer [N, K] (4096 x 14336) of random codes in every spelling.
// What the figures hold: CPU time of this thread, so that other programs count only by what they do
// to caches and memory. The file's bytes lie in memory that has been touched (`memory`), or in the
// page cache and are mapped anew each time, page faults included (`mapped`). Both pay for the pages
// of what they allocate, as a program that opens a model does. Reading from the disk is not
// measured: it is the disk's speed. Medians of R repeats after one that does not count.
#include <time.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/onnx_test_models.h"
#include "checkpoint/test_files.h"
#include "nibble/checkpoint.h"
#include "nibble/pack.h"

namespace {

using namespace nibble;              // NOLINT: a program of one file
using namespace nibble::checkpoint;  // NOLINT

int64_t g_n = 4096, g_k = 14336;
int g_repeats = 5;

struct Case {
  std::string name;   ///< of the spelling
  std::string file;   ///< its end tells the container
  std::string bytes;  ///< of the file
  std::string config;
};

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Times {
  std::vector<double> load, pack, both;
  int64_t code_bytes = 0;
  std::string format;
};

/// Loads and packs every layer once. False where one cannot be.
bool import_once(const Checkpoint& checkpoint, bool counts, Times& times) {
  double load = 0, pack_time = 0;
  times.code_bytes = 0;
  for (const LayerInfo& layer : checkpoint.layers()) {
    if (!layer.status.ok() || !layer.dense_only.empty()) continue;
    const double begin = cpu_seconds();
    const Result<QuantizedTensor> q = checkpoint.load(layer.name);
    const double loaded = cpu_seconds();
    if (!q.ok()) {
      std::fprintf(stderr, "%s\n", q.status().message().c_str());
      return false;
    }
    const Result<PackedWeight> packed = pack(*q, {LayoutId::kCpuPanel16});
    const double end = cpu_seconds();
    if (!packed.ok()) {
      std::fprintf(stderr, "%s\n", packed.status().message().c_str());
      return false;
    }
    load += loaded - begin;
    pack_time += end - loaded;
    times.code_bytes += q->codes.bytes();
    times.format = q->format.name();
  }
  if (counts) {
    times.load.push_back(load);
    times.pack.push_back(pack_time);
    times.both.push_back(load + pack_time);
  }
  return times.code_bytes > 0;
}

void print_row(const std::string& name, const char* from, const Times& times) {
  const double gb = 1e-9 * static_cast<double>(times.code_bytes);
  std::printf("%-38s %-18s %-7s %8.2f %8.2f %8.2f\n", name.c_str(), times.format.c_str(), from,
              gb / median(times.load), gb / median(times.pack), gb / median(times.both));
  std::fflush(stdout);
}

/// Repeats with a checkpoint that `open` gives.
bool measure(const std::string& name, const char* from, const auto& open) {
  Times times;
  for (int repeat = -1; repeat < g_repeats; ++repeat) {
    const Result<Checkpoint> checkpoint = open();
    if (!checkpoint.ok()) {
      std::fprintf(stderr, "%s: %s\n", name.c_str(), checkpoint.status().message().c_str());
      return false;
    }
    if (!import_once(*checkpoint, repeat >= 0, times)) {
      std::fprintf(stderr, "%s: no layer was measured\n", name.c_str());
      return false;
    }
  }
  print_row(name, from, times);
  return true;
}

bool measure_case(const Case& each) {
  Buffer bytes = Buffer::allocate(static_cast<int64_t>(each.bytes.size())).value();
  std::memcpy(bytes.mutable_data(), each.bytes.data(), each.bytes.size());
  const bool in_memory = measure(
      each.name, "memory", [&] { return Checkpoint::from_memory(bytes, each.config, each.file); });
  const TempDirectory directory;
  write_bytes(directory.path(each.file), each.bytes);
  if (!each.config.empty()) write_bytes(directory.path("config.json"), each.config);
  return measure(each.name, "mapped", [&] { return Checkpoint::open(directory.path()); }) &&
         in_memory;
}

// ------------------------------------------------------------------------------------- the layers

std::string drawn_bytes(int64_t count, uint32_t seed) {
  std::mt19937 engine(seed);
  std::vector<uint32_t> out(static_cast<size_t>(count + 3) / 4);
  for (uint32_t& word : out) word = static_cast<uint32_t>(engine());
  return bytes_of(out).substr(0, static_cast<size_t>(count));
}
std::string halves(int64_t count) {  // f16 scales near 1
  std::string out(static_cast<size_t>(2 * count), '\0');
  for (size_t i = 0; i < out.size(); i += 2) {
    out[i] = static_cast<char>(i * 31);
    out[i + 1] = 0x3c;
  }
  return out;
}
std::string words(int64_t count, uint32_t value) {
  return bytes_of(std::vector<uint32_t>(static_cast<size_t>(count), value));
}
std::string codes() { return drawn_bytes(g_n * g_k / 2, 1); }
std::string one_float(float value) { return bytes_of(std::vector<float>{value}); }

std::string method(const std::string& name, const std::string& keys) {
  return R"({"quantization_config": {"quant_method": ")" + name + "\", " + keys + "}}";
}

/// Group of each column: g of 128 columns, or drawn by a step that visits every column.
std::string index_of(bool mixed) {
  std::vector<int32_t> index(static_cast<size_t>(g_k));
  for (size_t j = 0; j < index.size(); ++j) {
    const size_t at = mixed ? j * 5003 % index.size() : j;
    index[at] = static_cast<int32_t>(j / 128);
  }
  return bytes_of(index);
}

Case safetensors(const std::string& name, const FileBuilder& file, const std::string& config) {
  return {name, "model.safetensors", file.build(), config};
}

void add_compressed_tensors(std::vector<Case>& cases) {
  const int64_t groups = g_k / 128;
  const auto config = [](const std::string& weights) {
    return method("compressed-tensors",
                  R"("config_groups": {"g": {"weights": {)" + weights + "}}}");
  };
  for (const std::string form : {"int4", "uint4", "int4 act-order"}) {
    FileBuilder file;
    file.add("l.weight_packed", "I32", {g_n, g_k / 8}, codes());
    file.add("l.weight_scale", "F16", {g_n, groups}, halves(g_n * groups));
    file.add("l.weight_shape", "I64", {2}, bytes_of(std::vector<int64_t>{g_n, g_k}));
    const bool symmetric = form != "uint4";
    if (!symmetric) {
      file.add("l.weight_zero_point", "I32", {g_n / 8, groups},
               words(g_n / 8 * groups, 0x65432107));
    }
    if (form == "int4 act-order") file.add("l.weight_g_idx", "I32", {g_k}, index_of(true));
    cases.push_back(safetensors(
        "compressed-tensors " + form, file,
        config(std::string(
                   R"("num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, )") +
               R"("symmetric": )" + (symmetric ? "true" : "false"))));
  }
  FileBuilder nvfp4;
  nvfp4.add("l.weight_packed", "U8", {g_n, g_k / 2}, codes());
  nvfp4.add("l.weight_scale", "F8_E4M3", {g_n, g_k / 16},
            std::string(static_cast<size_t>(g_n * g_k / 16), '\x38'));
  nvfp4.add("l.weight_global_scale", "F32", {1}, one_float(2));
  cases.push_back(safetensors("compressed-tensors nvfp4", nvfp4, ""));
  FileBuilder mxfp4;
  mxfp4.add("l.weight_packed", "U8", {g_n, g_k / 2}, codes());
  mxfp4.add("l.weight_scale", "U8", {g_n, g_k / 32},
            std::string(static_cast<size_t>(g_n * g_k / 32), '\x7f'));
  cases.push_back(safetensors("compressed-tensors mxfp4", mxfp4, ""));
}

void add_gptq_and_awq(std::vector<Case>& cases) {
  struct Form {
    const char* name;
    int64_t group;
    bool symmetric, mixed;
  };
  for (const Form& form :
       {Form{"gptq symmetric", 128, true, false}, Form{"gptq asymmetric", 128, false, false},
        Form{"gptq asymmetric g32", 32, false, false}, Form{"gptq act-order", 128, true, true}}) {
    const int64_t groups = g_k / form.group;
    FileBuilder file;
    file.add("l.qweight", "I32", {g_k / 8, g_n}, codes());
    file.add("l.qzeros", "I32", {groups, g_n / 8},
             words(groups * g_n / 8, form.symmetric ? 0x77777777u : 0x65432107u));
    file.add("l.scales", "F16", {groups, g_n}, halves(groups * g_n));
    if (form.group == 128) file.add("l.g_idx", "I32", {g_k}, index_of(form.mixed));
    cases.push_back(
        safetensors(form.name, file,
                    method("gptq", R"("bits": 4, "group_size": )" + std::to_string(form.group) +
                                       R"(, "sym": )" + (form.symmetric ? "true" : "false"))));
  }
  FileBuilder awq;
  const int64_t groups = g_k / 128;
  awq.add("l.qweight", "I32", {g_k, g_n / 8}, codes());
  awq.add("l.qzeros", "I32", {groups, g_n / 8}, words(groups * g_n / 8, 0x65432107u));
  awq.add("l.scales", "F16", {groups, g_n}, halves(groups * g_n));
  cases.push_back(safetensors("awq gemm", awq,
                              method("awq", R"("bits": 4, "group_size": 128, "version": "gemm")")));
}

void add_bitsandbytes(std::vector<Case>& cases) {
  const int64_t blocks = g_n * g_k / 64;
  for (const bool nested : {false, true}) {
    FileBuilder file;
    std::string state =
        R"({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [)" +
        std::to_string(g_n) + ", " + std::to_string(g_k) + "]";
    if (nested) {
      state += R"(, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5)";
    }
    state += "}";
    file.add("l.weight", "U8", {g_n * g_k / 2, 1}, codes());
    if (nested) {
      file.add("l.weight.absmax", "U8", {blocks}, drawn_bytes(blocks, 2));
      file.add("l.weight.nested_absmax", "F32", {blocks / 256},
               bytes_of(std::vector<float>(static_cast<size_t>(blocks / 256), 0.25f)));
      file.add("l.weight.nested_quant_map", "F32", {256}, bytes_of(std::vector<float>(256, 0.5f)));
    } else {
      file.add("l.weight.absmax", "F32", {blocks},
               bytes_of(std::vector<float>(static_cast<size_t>(blocks), 0.5f)));
    }
    file.add("l.weight.quant_map", "F32", {16},
             bytes_of(std::vector<float>(kNf4Codebook.begin(), kNf4Codebook.end())));
    file.add("l.weight.quant_state.bitsandbytes__nf4", "U8", {static_cast<int64_t>(state.size())},
             state);
    cases.push_back(safetensors(nested ? "bitsandbytes nf4 nested" : "bitsandbytes nf4", file,
                                method("bitsandbytes", R"("load_in_4bit": true)")));
  }
}

void add_modelopt_and_hqq(std::vector<Case>& cases) {
  FileBuilder nvfp4;
  nvfp4.add("l.weight", "U8", {g_n, g_k / 2}, codes());
  nvfp4.add("l.weight_scale", "F8_E4M3", {g_n, g_k / 16},
            std::string(static_cast<size_t>(g_n * g_k / 16), '\x38'));
  nvfp4.add("l.weight_scale_2", "F32", {}, one_float(2));
  cases.push_back(safetensors("modelopt nvfp4", nvfp4, ""));
  FileBuilder int4;
  int4.add("l.weight", "U8", {g_n / 2, g_k}, codes());
  int4.add("l.weight_scale", "F32", {g_n, g_k / 128},
           bytes_of(std::vector<float>(static_cast<size_t>(g_n * g_k / 128), 0.5f)));
  cases.push_back(safetensors("modelopt int4 awq", int4, ""));
  FileBuilder hqq;
  const int64_t rows = g_n * g_k / 64;
  const auto scalar = [](int64_t value) {
    return bytes_of(std::vector<int32_t>{static_cast<int32_t>(value)});
  };
  hqq.add("l.W_q", "U8", {rows / 2, 64}, codes());
  hqq.add("l.scale", "F16", {rows, 1}, halves(rows));
  hqq.add("l.zero", "F16", {rows, 1}, halves(rows));
  hqq.add("l.shape", "I64", {2}, bytes_of(std::vector<int64_t>{g_n, g_k}));
  hqq.add("l.axis", "I32", {}, scalar(1));
  hqq.add("l.group_size", "I32", {}, scalar(64));
  hqq.add("l.nbits", "I32", {}, scalar(4));
  hqq.add("l.packing", "U8", {7}, "4bit_u8");
  hqq.add("l.quant_scale", "U8", {}, std::string(1, '\0'));
  hqq.add("l.quant_zero", "U8", {}, std::string(1, '\0'));
  cases.push_back(safetensors("hqq axis 1", hqq, ""));
}

template <class T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

void add_gguf(std::vector<Case>& cases) {
  struct Type {
    const char* name;
    uint32_t id;
    int64_t block, bytes, scale_at;  ///< where f16 scales begin, two if there is a minimum
    int scales;
  };
  for (const Type& type : {Type{"q4_0", 2, 32, 18, 0, 1}, Type{"q4_1", 3, 32, 20, 0, 2},
                           Type{"q4_k", 12, 256, 144, 0, 2}, Type{"mxfp4", 39, 32, 17, 0, 0}}) {
    const int64_t blocks = g_n * g_k / type.block;
    std::string data = drawn_bytes(blocks * type.bytes, 3);
    for (int64_t b = 0; b < blocks; ++b) {
      char* block = data.data() + b * type.bytes;
      for (int s = 0; s < type.scales; ++s) block[2 * s + 1] = 0x1c;
      if (type.scales == 0) block[0] = 0x70;
    }
    const std::string name = "l.weight";
    std::string head = "GGUF" + raw<uint32_t>(3) + raw<uint64_t>(1) + raw<uint64_t>(0) +
                       raw<uint64_t>(name.size()) + name + raw<uint32_t>(2) +
                       raw<uint64_t>(static_cast<uint64_t>(g_k)) +
                       raw<uint64_t>(static_cast<uint64_t>(g_n)) + raw<uint32_t>(type.id) +
                       raw<uint64_t>(0);
    head.resize((head.size() + 31) / 32 * 32);
    cases.push_back({std::string("gguf ") + type.name, "model.gguf", head + data, ""});
  }
}

void add_onnx(std::vector<Case>& cases) {
  const int64_t blocks = g_k / 32;
  for (const bool symmetric : {true, false}) {
    GraphText graph;
    graph.tensors = {
        raw_tensor("B", kUint8, {g_n, blocks, 16}, codes()),
        raw_tensor("s", kFloat, {g_n, blocks},
                   bytes_of(std::vector<float>(static_cast<size_t>(g_n * blocks), 0.5f)))};
    NodeText node;
    node.op = "MatMulNBits";
    node.domain = "com.microsoft";
    node.name = "l";
    node.inputs = {"x", "B", "s"};
    if (!symmetric) {
      graph.tensors.push_back(
          raw_tensor("z", kUint8, {g_n, blocks / 2}, drawn_bytes(g_n * blocks / 2, 4)));
      node.inputs.push_back("z");
    }
    node.outputs = {"y"};
    node.attributes = {integer_attribute("K", g_k), integer_attribute("N", g_n),
                       integer_attribute("bits", 4), integer_attribute("block_size", 32)};
    graph.nodes = {node};
    cases.push_back({symmetric ? "onnx MatMulNBits" : "onnx MatMulNBits asymmetric", "model.onnx",
                     graph.model(), ""});
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> paths;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (i + 1 < argc && word == "--repeats") {
      g_repeats = std::max(1, std::atoi(argv[++i]));
    } else if (i + 1 < argc && word == "--n") {
      g_n = std::atoll(argv[++i]);
    } else if (i + 1 < argc && word == "--k") {
      g_k = std::atoll(argv[++i]);
    } else {
      paths.push_back(word);
    }
  }
  if (g_n < 32 || g_k < 256 || g_n % 32 != 0 || g_k % 256 != 0) {
    std::fprintf(stderr, "import_speed: N has to be a multiple of 32, K of 256\n");
    return 2;
  }
  std::printf("GB/s of stored codes, CPU time of one thread\n%-38s %-18s %-7s %8s %8s %8s\n",
              "spelling", "format", "from", "load", "pack", "both");
  bool all = true;
  for (const std::string& path : paths) {
    all &= measure(path, "mapped", [&] { return Checkpoint::open(path); });
  }
  if (!paths.empty()) return all ? 0 : 1;
  // One kind at a time, so that few files are in memory together.
  for (const auto add : {add_compressed_tensors, add_gptq_and_awq, add_bitsandbytes,
                         add_modelopt_and_hqq, add_gguf, add_onnx}) {
    std::vector<Case> cases;
    add(cases);
    for (const Case& each : cases) all &= measure_case(each);
  }
  return all ? 0 : 1;
}
