#include "wordpiece.h"

#include <gtest/gtest.h>

namespace sentence_embedding {
namespace {

// Ids: 0 [PAD], 1 [UNK], 2 [CLS], 3 [SEP], 4 [MASK], then as listed.
constexpr char kVocabulary[] =
    "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"
    "un\n##aff\n##able\nunaff\ncafe\n.\n##.\nab\n##c\n\u4e2d\n##\n\u03c3\n##\u03c3\n[\n]\n";
enum : int32_t {
  kUnk = 1,
  kCls,
  kSep,
  kMask,
  kUn,
  kAff,
  kAble,
  kUnaff,
  kCafe,
  kDot,
  kDotInside,
  kAb,
  kC,
  kZhong,
  kHashes,
  kSigma,
  kSigmaInside,
  kOpen,
  kClose,
};

WordPiece tokenizer() {
  auto made = WordPiece::from_vocabulary(kVocabulary);
  EXPECT_TRUE(made.ok()) << made.status().message();
  return std::move(made).value();
}

using Ids = std::vector<int32_t>;

TEST(WordPiece, TakesTheLongestPieceFromTheLeft) {
  EXPECT_EQ(tokenizer().encode("unaffable", 16), (Ids{kCls, kUnaff, kAble, kSep}));
  EXPECT_EQ(tokenizer().encode("unable", 16), (Ids{kCls, kUn, kAble, kSep}));
}

TEST(WordPiece, AWordWithOneUnknownPieceIsUnknownAsAWhole) {
  EXPECT_EQ(tokenizer().encode("unaffx ab", 16), (Ids{kCls, kUnk, kAb, kSep}));
}

TEST(WordPiece, FoldsCaseAndAccents) {
  EXPECT_EQ(tokenizer().encode("Café CAFE\u0301", 16), (Ids{kCls, kCafe, kCafe, kSep}));
}

TEST(WordPiece, LowerCasesSigmaWithoutLookingAtItsPlace) {
  EXPECT_EQ(tokenizer().encode("\u03a3\u03a3", 16), (Ids{kCls, kSigma, kSigmaInside, kSep}));
}

TEST(WordPiece, DecomposesHangulByArithmetic) {
  EXPECT_EQ(split_words(U"\uac00\uac01\ud7a3"),
            (std::vector<std::u32string>{U"\u1100\u1161\u1100\u1161\u11a8\u1112\u1175\u11c2"}));
}

TEST(WordPiece, PunctuationAndChineseCharactersStandAlone) {
  EXPECT_EQ(tokenizer().encode("ab.abc..", 16), (Ids{kCls, kAb, kDot, kAb, kC, kDot, kDot, kSep}));
  EXPECT_EQ(tokenizer().encode("ab\u4e2dab", 16), (Ids{kCls, kAb, kZhong, kAb, kSep}));
}

TEST(WordPiece, ControlCharactersVanishAndWhiteSpaceSplits) {
  EXPECT_EQ(split_words(U"a\u200db\u00a0c\td\u0007e\u00adf\u3000g"),
            (std::vector<std::u32string>{U"ab", U"c", U"def", U"g"}));
}

TEST(WordPiece, PunctuationIsJudgedAfterFolding) {
  // U+037E, the Greek question mark, decomposes to a semicolon.
  EXPECT_EQ(split_words(U"a\u037eb"), (std::vector<std::u32string>{U"a", U";", U"b"}));
}

TEST(WordPiece, NamesOfSpecialTokensStandForThem) {
  EXPECT_EQ(tokenizer().encode("ab[MASK]ab [mask]", 16),
            (Ids{kCls, kAb, kMask, kAb, kOpen, kUnk, kClose, kSep}));
}

TEST(WordPiece, AWordOfMoreThanAHundredCharactersIsUnknown) {
  EXPECT_EQ(tokenizer().encode("ab" + std::string(98, 'c'), 256).size(), 2u + 99u);
  EXPECT_EQ(tokenizer().encode("ab" + std::string(99, 'c'), 256), (Ids{kCls, kUnk, kSep}));
}

TEST(WordPiece, CutsAtTheLimitAndKeepsTheSeparator) {
  EXPECT_EQ(tokenizer().encode("ab ab unaffable ab", 5), (Ids{kCls, kAb, kAb, kUnaff, kSep}));
  EXPECT_EQ(tokenizer().encode("ab [MASK]", 2), (Ids{kCls, kSep}));
}

TEST(WordPiece, EmptyTextHasTheTwoSpecialTokens) {
  EXPECT_EQ(tokenizer().encode("", 16), (Ids{kCls, kSep}));
}

TEST(WordPiece, MalformedUtf8BecomesReplacementCharacters) {
  EXPECT_EQ(decode_utf8("a\xff\xc3"), U"a\ufffd\ufffd");
  EXPECT_EQ(decode_utf8("\xc0\xaf"), U"\ufffd\ufffd");            // overlong
  EXPECT_EQ(decode_utf8("\xed\xa0\x80"), U"\ufffd\ufffd\ufffd");  // surrogate
  EXPECT_EQ(decode_utf8("\xf4\x90\x80\x80").size(), 4u);          // past U+10FFFF
  EXPECT_EQ(decode_utf8("\xf0\x9f\x98\x80"), U"\U0001f600");
}

TEST(WordPiece, RefusesAVocabularyWithoutSpecialTokensOrWithRepeats) {
  EXPECT_NE(
      WordPiece::from_vocabulary("[PAD]\n[UNK]\n[CLS]\n[SEP]\n").status().message().find("[MASK]"),
      std::string::npos);
  const auto repeated = WordPiece::from_vocabulary("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\na\n");
  EXPECT_NE(repeated.status().message().find("'a' is on line 6 and again on line 7"),
            std::string::npos);
}

TEST(WordPiece, ReadsLinesThatEndInCarriageReturns) {
  const auto made = WordPiece::from_vocabulary("[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\n[MASK]\r\nab");
  ASSERT_TRUE(made.ok()) << made.status().message();
  EXPECT_EQ(made->encode("ab", 8), (Ids{2, 5, 3}));
}

}  // namespace
}  // namespace sentence_embedding
