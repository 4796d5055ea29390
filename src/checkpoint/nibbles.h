// Loops over packed 4-bit codes that several spellings share.
#ifndef NIBBLE_CHECKPOINT_NIBBLES_H_
#define NIBBLE_CHECKPOINT_NIBBLES_H_

#include <cstdint>
#include <cstring>

namespace nibble::checkpoint {

/// A row of `count` low-first codes from a row of bytes that hold one code each in their low nibble
/// (shift 0) or their high one (shift 4). `out` gets ceil(count / 2) bytes; of an odd count the
/// last nibble is clear. Two bytes at a time, so that compilers vectorise it.
inline void join_nibbles(const uint8_t* in, int shift, int64_t count, uint8_t* out) {
  for (int64_t i = 0; i < count / 2; ++i) {
    uint16_t two;
    std::memcpy(&two, in + 2 * i, sizeof(two));
    const int codes = two >> shift & 0x0F0F;
    out[i] = static_cast<uint8_t>(codes | codes >> 4);
  }
  if (count % 2 != 0) out[count / 2] = static_cast<uint8_t>(in[count - 1] >> shift & 15);
}

}  // namespace nibble::checkpoint

#endif  // NIBBLE_CHECKPOINT_NIBBLES_H_
