// The ONNX container: where tensors lie, and files that are wrong.
#include "checkpoint/onnx.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "checkpoint/onnx_test_models.h"

namespace nibble::checkpoint {
namespace {

namespace fs = std::filesystem;

std::string message_of(const std::string& model) {
  const Result<Checkpoint> opened = open_model(model);
  return opened.ok() ? "opened" : opened.status().message();
}
std::string message_of_tensor(const std::string& tensor) {
  return message_of(GraphText{{tensor}, {}}.model());
}
std::vector<float> floats(const Checkpoint& checkpoint, const std::string& name) {
  const Tensor tensor = checkpoint.tensor(name).value();
  std::vector<float> out(static_cast<size_t>(tensor.view.elements()));
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = load_as_f32(tensor.view.data, tensor.view.dtype, static_cast<int64_t>(i));
  }
  return out;
}
#define EXPECT_SAYS(message, part) EXPECT_NE((message).find(part), std::string::npos) << (message)

TEST(Onnx, RawDataIsViewedInPlaceUnderOnnxNamesOfTypes) {
  const std::string raw = bytes_of<float>({1, 2, 3, 4, 5, 6});
  const std::string model = GraphText{
      {raw_tensor("a", kFloat, {2, 3}, raw), raw_tensor("b", kInt4Code, {3, 3}, "12345"),
       raw_tensor("c", kE8m0Code, {2}, "\x7f\x80"), raw_tensor("d", 28, {4}, "xyz")},
      {}}.model();
  const Checkpoint checkpoint = open_model(model).value();
  ASSERT_EQ(checkpoint.tensors().size(), 4u);
  const TensorInfo& a = *checkpoint.find("a");
  EXPECT_EQ(a.dtype_name, "FLOAT");
  EXPECT_EQ(a.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(a.file_offset, static_cast<int64_t>(model.find(raw)));
  EXPECT_EQ(floats(checkpoint, "a"), (std::vector<float>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(checkpoint.find("b")->dtype_name, "INT4");
  EXPECT_FALSE(checkpoint.find("b")->dtype);
  EXPECT_EQ(checkpoint.find("b")->bytes, 5);
  EXPECT_EQ(checkpoint.find("c")->dtype, DType::kE8M0);
  EXPECT_EQ(checkpoint.find("d")->dtype_name, "FLOAT6E3M2");
  EXPECT_EQ(checkpoint.find("d")->bytes, 3);
  EXPECT_EQ(checkpoint.spelling(), "");
}

TEST(Onnx, TypedFieldsAreDecodedPackedOrOneByOne) {
  const std::string halves = varint(0x3C00) + varint(0xC000);
  std::string one_by_one = tensor_head("i8", kInt8, {3});
  for (const int64_t value : {-128, 0, 127}) one_by_one += number_field(5, value);
  const Checkpoint checkpoint =
      open_model(
          GraphText{
              {tensor_head("f16", kFloat16, {2}) + bytes_field(5, halves), one_by_one,
               tensor_head("i64", kInt64, {2}) + bytes_field(7, varint(3) + varint(~uint64_t{0})),
               tensor_head("u4", kUint4Code, {3}) + bytes_field(5, varint(0xB7) + varint(0x01)),
               tensor_head("f32", kFloat, {1}) + bytes_field(4, bytes_of<float>({2.5f})),
               tensor_head("none", kFloat, {0, 7})},
              {}}
              .model())
          .value();
  EXPECT_EQ(floats(checkpoint, "f16"), (std::vector<float>{1, -2}));
  EXPECT_EQ(floats(checkpoint, "f32"), (std::vector<float>{2.5f}));
  const Buffer i8 = checkpoint.tensor_bytes("i8").value();
  EXPECT_EQ(std::string(i8.data(), i8.data() + i8.bytes()), std::string("\x80\x00\x7f", 3));
  const Tensor i64 = checkpoint.tensor("i64").value();
  EXPECT_EQ(static_cast<const int64_t*>(i64.view.data)[0], 3);
  EXPECT_EQ(static_cast<const int64_t*>(i64.view.data)[1], -1);
  EXPECT_EQ(checkpoint.tensor_bytes("u4")->data()[0], 0xB7);
  EXPECT_EQ(checkpoint.tensor_bytes("u4")->bytes(), 2);
  EXPECT_EQ(checkpoint.find("none")->bytes, 0);
  EXPECT_EQ(checkpoint.shards().size(), 2u);
}

TEST(Onnx, ConstantsAreTensorsAndTextIsNot) {
  const std::string value_float = bytes_field(1, "value_float") + varint(2 << 3 | 5) +
                                  bytes_of<float>({-3}) + number_field(20, 1);
  const std::string floats_value = bytes_field(1, "value_floats") +
                                   bytes_field(7, bytes_of<float>({1, 2})) + number_field(20, 6);
  const GraphText graph{
      {tensor_head("text", kString, {1}) + bytes_field(6, "hello")},
      {{"Constant",
        "",
        "",
        {},
        {"a"},
        {tensor_attribute("value", raw_tensor("x", kUint8, {2}, "ab"))}},
       {"Constant", "ai.onnx", "", {}, {"b"}, {value_float}},
       {"Constant", "", "", {}, {"c"}, {floats_value}},
       {"Constant", "", "", {}, {"d"}, {integers_attribute("value_ints", {5, -1})}},
       {"Constant", "", "", {}, {"e"}, {integer_attribute("value_int", 9)}},
       {"Constant", "elsewhere", "", {}, {"f"}, {integer_attribute("value_int", 9)}}}};
  const Checkpoint checkpoint = open_model(graph.model()).value();
  EXPECT_EQ(checkpoint.tensors().size(), 5u);
  EXPECT_EQ(checkpoint.find("a")->bytes, 2);
  EXPECT_EQ(floats(checkpoint, "b"), (std::vector<float>{-3}));
  EXPECT_TRUE(checkpoint.find("b")->shape.empty());
  EXPECT_EQ(floats(checkpoint, "c"), (std::vector<float>{1, 2}));
  EXPECT_EQ(checkpoint.find("d")->shape, (std::vector<int64_t>{2}));
  EXPECT_EQ(static_cast<const int64_t*>(checkpoint.tensor("d")->view.data)[1], -1);
  EXPECT_EQ(static_cast<const int64_t*>(checkpoint.tensor("e")->view.data)[0], 9);
}

TEST(Onnx, MetadataSaysWhoMadeTheModel) {
  const std::string opset = bytes_field(1, "com.microsoft") + number_field(2, 1);
  const std::string property = bytes_field(1, "license") + bytes_field(2, "MIT");
  const std::string imposter = bytes_field(1, "producer_name") + bytes_field(2, "nobody");
  const std::string model = GraphText{}.model() + bytes_field(2, "a tool") + bytes_field(3, "1.2") +
                            bytes_field(8, number_field(2, 21)) + bytes_field(8, opset) +
                            bytes_field(14, property) + bytes_field(14, imposter);
  const Checkpoint checkpoint = open_model(model).value();
  EXPECT_EQ(checkpoint.metadata(),
            (std::map<std::string, std::string>{{"ir_version", "10"},
                                                {"license", "MIT"},
                                                {"opset.ai.onnx", "21"},
                                                {"opset.com.microsoft", "1"},
                                                {"producer_name", "a tool"},
                                                {"producer_version", "1.2"}}));
}

TEST(Onnx, TensorsOfSubgraphsAreNamedAfterTheNodeThatHoldsThem) {
  const GraphText branch{{raw_tensor("w", kUint8, {1}, "a")}, {}};
  GraphText graph;
  graph.tensors = {raw_tensor("w", kUint8, {1}, "b")};
  graph.nodes = {
      {"If",
       "",
       "merge",
       {"c"},
       {"y"},
       {graph_attribute("then_branch", branch.text()),
        graph_attribute("else_branch", branch.text())}},
      {"If", "", "merge", {"c"}, {"z"}, {graph_attribute("then_branch", branch.text())}}};
  const Checkpoint checkpoint = open_model(graph.model()).value();
  EXPECT_EQ(checkpoint.tensors().size(), 4u);
  EXPECT_NE(checkpoint.find("w"), nullptr);
  EXPECT_NE(checkpoint.find("merge.then_branch/w"), nullptr);
  EXPECT_NE(checkpoint.find("merge.else_branch/w"), nullptr);
  EXPECT_NE(checkpoint.find("subgraph3/w"), nullptr);
}

// ------------------------------------------------------------------------------- external data

std::string external_model(const std::vector<std::pair<std::string, std::string>>& entries) {
  return GraphText{{external_tensor("w", kFloat, {2, 2}, entries)}, {}}.model();
}

TEST(Onnx, ExternalDataIsMappedFromSeveralFiles) {
  const TempDirectory directory;
  write_bytes(directory.path("model.onnx_data"), "12345678" + bytes_of<float>({1, 2, 3, 4}));
  write_bytes(directory.path("sub/more.bin"), bytes_of<float>({5, 6}));
  write_bytes(directory.path("notes.txt"), "other");
  const GraphText graph{
      {external_tensor(
           "a", kFloat, {4},
           {{"location", "model.onnx_data"}, {"offset", "8"}, {"length", "16"}, {"checksum", "0"}}),
       external_tensor("b", kFloat, {2}, {{"location", "./sub/more.bin"}}),
       external_tensor("c", kFloat, {1}, {{"location", "sub/more.bin"}, {"offset", "4"}}),
       raw_tensor("d", kFloat, {1}, bytes_of<float>({7}))},
      {}};
  write_bytes(directory.path("model.onnx"), graph.model());
  for (const std::string& path : {directory.path(), directory.path("model.onnx")}) {
    const Checkpoint checkpoint = Checkpoint::open(path).value();
    EXPECT_EQ(floats(checkpoint, "a"), (std::vector<float>{1, 2, 3, 4}));
    EXPECT_EQ(floats(checkpoint, "b"), (std::vector<float>{5, 6}));
    EXPECT_EQ(floats(checkpoint, "c"), (std::vector<float>{6}));
    EXPECT_EQ(floats(checkpoint, "d"), (std::vector<float>{7}));
    ASSERT_EQ(checkpoint.shards().size(), 3u);
    EXPECT_EQ(checkpoint.shards()[1], "model.onnx_data");
    EXPECT_EQ(checkpoint.shards()[2], "sub/more.bin");
    EXPECT_EQ(checkpoint.find("a")->file_offset, 8);
  }
  const Checkpoint checkpoint = Checkpoint::open(directory.path()).value();
  EXPECT_EQ(checkpoint.other_files().size(), 1u);
  EXPECT_EQ(checkpoint.other_files()[0], "notes.txt");
}

TEST(Onnx, ExternalDataStaysInsideTheModelsDirectory) {
  const TempDirectory directory;
  write_bytes(directory.path("secret"), bytes_of<float>({1, 2, 3, 4}));
  fs::create_directory(directory.path("model"));
  fs::create_symlink(directory.path("secret"), directory.path("model/link"));
  fs::create_directory_symlink(directory.path(), directory.path("model/folder"));
  const auto open = [&](const std::string& location) {
    write_bytes(directory.path("model/model.onnx"), external_model({{"location", location}}));
    return Checkpoint::open(directory.path("model")).status();
  };
  for (const std::string& location :
       {std::string("../secret"), std::string("a/../../secret"), directory.path("secret"),
        std::string("link"), std::string("folder/secret"), std::string("/etc/hostname")}) {
    const Status status = open(location);
    EXPECT_EQ(status.code(), Code::kCorruptFile) << location << ": " << status.message();
    EXPECT_SAYS(status.message(), "tensor 'w'");
  }
  EXPECT_EQ(open("missing").code(), Code::kIo);
  write_bytes(directory.path("model/here"), bytes_of<float>({1, 2, 3, 4}));
  EXPECT_TRUE(open("here").ok());
}

TEST(Onnx, ExternalOffsetsAndLengthsAreChecked) {
  const TempDirectory directory;
  write_bytes(directory.path("data"), std::string(40, 'x'));
  const auto message = [&](std::vector<std::pair<std::string, std::string>> entries) {
    entries.emplace_back("location", "data");
    write_bytes(directory.path("model.onnx"), external_model(entries));
    const auto opened = Checkpoint::open(directory.path("model.onnx"));
    return opened.ok() ? "opened" : opened.status().message();
  };
  EXPECT_EQ(message({{"offset", "24"}}), "opened");
  EXPECT_EQ(message({{"offset", "24"}, {"length", "16"}}), "opened");
  EXPECT_SAYS(message({{"offset", "25"}}), "pass the end of data, which has 40");
  EXPECT_SAYS(message({{"offset", "9223372036854775807"}}), "pass the end of data");
  EXPECT_SAYS(message({{"offset", "9223372036854775808"}}), "not a number of bytes");
  EXPECT_SAYS(message({{"offset", "-16"}}), "not a number of bytes");
  EXPECT_SAYS(message({{"offset", ""}}), "not a number of bytes");
  EXPECT_SAYS(message({{"offset", "8 "}}), "not a number of bytes");
  EXPECT_SAYS(message({{"length", "12"}}), "takes 16 bytes; the length of its external data is 12");
  EXPECT_SAYS(message({{"length", "-1"}}), "not a number of bytes");
}

TEST(Onnx, AModelInMemoryHasNoExternalData) {
  EXPECT_SAYS(message_of(external_model({{"location", "model.onnx"}})),
              "a model in memory has no other files");
  EXPECT_SAYS(message_of(external_model({})), "its external data has no location");
  EXPECT_SAYS(message_of_tensor(external_tensor("w", 28, {2}, {{"location", "data"}})),
              "its external data has no length");
}

// ------------------------------------------------------------------------------------- damage

TEST(Onnx, EveryTruncationIsRefused) {
  const std::string model =
      GraphText{{raw_tensor("w", kFloat, {2}, bytes_of<float>({1, 2}))},
                {{"Add", "", "add", {"x", "w"}, {"y"}, {integer_attribute("axis", 1)}}}}
          .model();
  EXPECT_EQ(message_of(model), "opened");
  const size_t graph_begin = 2;  // ir_version alone is a whole, empty model
  for (size_t length = 0; length < model.size(); ++length) {
    const std::string message = message_of(model.substr(0, length));
    if (length == 0 || length == graph_begin) {
      EXPECT_SAYS(message, "the model has no graph");
    } else {
      EXPECT_SAYS(message, "not a valid protobuf message") << length;
    }
  }
}

TEST(Onnx, VarintsAreAtMostTenBytes) {
  EXPECT_SAYS(message_of("\x08" + std::string(11, '\xff')), "not a valid protobuf message");
  EXPECT_SAYS(message_of(std::string("\x0b")), "not a valid protobuf message");  // a group
  EXPECT_SAYS(message_of(std::string("\x00\x00", 2)), "not a valid protobuf message");
  EXPECT_SAYS(message_of(bytes_field(7, bytes_field(5, bytes_field(1, "\xff")))),
              "not a valid protobuf message");
}

TEST(Onnx, FieldsOfTheWrongKindAreRefused) {
  EXPECT_SAYS(message_of(number_field(7, 1)), "graph is not stored as bytes");
  EXPECT_SAYS(message_of(bytes_field(1, "x") + bytes_field(7, "")), "ir_version is not an integer");
  EXPECT_SAYS(message_of_tensor(bytes_field(2, "x")), "data_type is not an integer");
  EXPECT_SAYS(message_of_tensor(number_field(9, 1)), "raw_data is not stored as bytes");
  EXPECT_SAYS(message_of(bytes_field(7, "") + bytes_field(7, "")), "two graphs");
  EXPECT_SAYS(message_of(bytes_field(7, bytes_field(1, bytes_field(3, "n")))),
              "node 'n' has no op_type");
}

TEST(Onnx, SizesAreThoseOfTheShape) {
  const std::string four = bytes_of<float>({1});
  EXPECT_SAYS(message_of_tensor(raw_tensor("w", kFloat, {2}, four)),
              "tensor 'w': FLOAT [2] takes 8 bytes; its data has 4");
  EXPECT_SAYS(message_of_tensor(raw_tensor("w", kInt4Code, {3}, "a")), "takes 2 bytes");
  EXPECT_SAYS(message_of_tensor(tensor_head("w", kFloat, {2})), "its data has 0");
  EXPECT_SAYS(message_of_tensor(raw_tensor("w", kFloat, {-1}, four)), "negative or overflows");
  EXPECT_SAYS(message_of_tensor(raw_tensor("w", kFloat, {INT64_MAX, 4}, four)), "overflows");
  EXPECT_SAYS(message_of_tensor(raw_tensor("w", kFloat, {INT64_MAX / 4 + 2}, four)), "overflows");
  EXPECT_SAYS(message_of_tensor(raw_tensor("w", kFloat, std::vector<int64_t>(33, 1), four)),
              "33 dimensions, at most 32");
  EXPECT_SAYS(message_of_tensor(tensor_head("w", kInt8, {2}) + bytes_field(5, varint(1))),
              "takes 2 bytes; its list of values has 1");
  EXPECT_SAYS(message_of_tensor(tensor_head("w", kInt8, {1}) + bytes_field(4, four)),
              "INT8 values are not stored in this field");
  EXPECT_SAYS(message_of_tensor(raw_tensor("w", kFloat, {1}, four) + bytes_field(4, four)),
              "raw_data and another field");
  EXPECT_SAYS(message_of_tensor(tensor_head("w", kFloat, {1}) + bytes_field(4, "abc") +
                                bytes_field(4, "d")),
              "ends inside a value");
  EXPECT_SAYS(message_of_tensor(raw_tensor("w", kFloat, {1}, four) + number_field(14, 1)),
              "in the file and outside of it");
  EXPECT_SAYS(message_of_tensor(raw_tensor("w", kFloat, {1}, four) + bytes_field(3, "")),
              "segments");
}

TEST(Onnx, NamesStandOnce) {
  const std::string w = raw_tensor("w", kUint8, {1}, "a");
  EXPECT_SAYS(message_of(GraphText{{w, w}, {}}.model()), "initializer 'w' stands twice");
  EXPECT_SAYS(message_of_tensor(raw_tensor("", kUint8, {1}, "a")), "an initializer has no name");
  const NodeText add{"Add", "", "", {"x", "x"}, {"y"}, {}};
  EXPECT_SAYS(message_of(GraphText{{}, {add, add}}.model()), "the value 'y' stands twice");
  const GraphText branch{{w}, {}};
  const GraphText forged{{raw_tensor("i.b/w", kUint8, {1}, "a")},
                         {{"If", "", "i", {}, {"y"}, {graph_attribute("b", branch.text())}}}};
  EXPECT_SAYS(message_of(forged.model()), "tensor 'i.b/w' stands twice");
}

TEST(Onnx, SubgraphsLieAtMost32Deep) {
  const auto nested = [](int depth) {
    GraphText graph;
    for (int i = 0; i < depth; ++i) {
      const std::string inner = graph.text();
      graph.nodes = {{"If", "", "", {}, {}, {graph_attribute("g", inner)}}};
    }
    return graph.model();
  };
  EXPECT_EQ(message_of(nested(32)), "opened");
  EXPECT_SAYS(message_of(nested(33)), "more than 32 deep");
  EXPECT_SAYS(message_of(nested(1000)), "more than 32 deep");
}

TEST(Onnx, TheGraphConnectsNamesAcrossScopes) {
  const GraphText branch{{}, {{"Neg", "", "", {"w"}, {"v"}, {}}}};
  const GraphText graph{
      {raw_tensor("w", kUint8, {1}, "a")},
      {{"If", "", "if", {"missing", ""}, {"y"}, {graph_attribute("g", branch.text())}}}};
  const std::string model = graph.model();
  Buffer bytes = Buffer::view(model.data(), static_cast<int64_t>(model.size()));
  const OnnxGraph parsed = parse_onnx(MappedFile::of_memory(std::move(bytes)), "m").value();
  ASSERT_EQ(parsed.nodes.size(), 2u);
  const OnnxNode& neg = parsed.nodes[0];
  EXPECT_EQ(neg.op_type, "Neg");
  EXPECT_EQ(parsed.tensor_of(neg.inputs[0]), &parsed.tensors[0]);
  ASSERT_EQ(parsed.values[static_cast<size_t>(neg.inputs[0])].uses.size(), 1u);
  const OnnxNode& branching = parsed.nodes[1];
  EXPECT_EQ(branching.inputs.size(), 2u);
  EXPECT_EQ(parsed.tensor_of(branching.inputs[0]), nullptr);
  EXPECT_EQ(branching.inputs[1], -1);
  EXPECT_EQ(parsed.producer_of(branching.outputs[0]), &branching);
  EXPECT_EQ(branching.message, graph.nodes[0].text());
}

}  // namespace
}  // namespace nibble::checkpoint
