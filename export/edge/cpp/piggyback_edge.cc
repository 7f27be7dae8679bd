#include "piggyback_edge.h"

#include <fenv.h>
#include <math.h>
#include <string.h>
#include <algorithm>
#include <limits>
#include <new>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__ || defined(__FAST_MATH__)
#error "Files are little-endian, as the machine must be, and numbers must be exact: compile without -ffast-math."
#endif
static_assert(std::numeric_limits<float>::is_iec559 && sizeof(float) == 4, "float must be IEEE 754 binary32");

namespace piggyback {
namespace {
constexpr size_t kDigest = 32, kManifestHeader = 128, kEntry = 64, kTaskHeader = 256, kRecord = 16, kSignature = 128;
constexpr uint64_t kMostElements = 0x7fffffff, kMostTask = 1u << 30;
constexpr uint32_t kMost = 1u << 20, kMostEntries = 65536, kMostText = 65535, kMostSignatures = 256, kMostLabels = 256;
constexpr uint32_t kMostSide = 1u << 15, kMostOutputs = 1u << 28, kNameSize = 64, kArgmax = 1, kSigmoid = 2, kBoxes = 3;
constexpr uint32_t kFilter = 1, kHeadKernel = 7, kHeadBias = 8, kFloat32 = 1, kFloat16 = 2, kInt8 = 3, kInt64 = 5;
constexpr uint32_t kTernary = 1, kCompressed = 2, kOwnNorm = 4, kHeadInside = 8;  // Flags.
enum Part : size_t { kMasked, kMasks, kRates, kHead, kCorrections, kText, kParts };

template <class T>
T Load(const void* from) {
  T value;
  memcpy(&value, from, sizeof value);
  return value;
}
uint32_t Load32(const uint8_t* from) { return Load<uint32_t>(from); }
uint64_t Load64(const uint8_t* from) { return Load<uint64_t>(from); }
uint32_t BitsOf(float number) { return Load<uint32_t>(&number); }
float FloatOf(uint32_t bits) { return Load<float>(&bits); }
uint64_t Padded(uint64_t size) { return (size + 7) / 8 * 8; }
bool HasDigest(Bytes bytes, const uint8_t* digest) { return memcmp(Sha256(bytes).data(), digest, kDigest) == 0; }
bool IsZero(const uint8_t* from, const uint8_t* to) { return std::all_of(from, to, [](uint8_t x) { return x == 0; }); }
bool IsName(const uint8_t* name) {
  const uint8_t* const end = std::find_if(name, name + kNameSize, [](uint8_t x) { return x < 0x21 || x > 0x7e; });
  return end != name && end != name + kNameSize && IsZero(end, name + kNameSize);
}
bool AreFinite(const uint8_t* floats, uint64_t size) {
  for (uint64_t i = 0; i < size; i += 4)
    if ((Load32(floats + i) & 0x7f800000) == 0x7f800000) return false;
  return true;
}
bool IsUtf8(const uint8_t* text, uint32_t size) {
  constexpr uint32_t kLeast[] = {0, 0x80, 0x800, 0x10000};
  for (uint32_t i = 0; i < size;) {
    const uint8_t lead = text[i++];
    if (lead < 0x80) continue;
    const uint32_t more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if (lead < 0xc0 || lead > 0xf4 || size - i < more) return false;
    uint32_t code = lead & (0x3fu >> more);
    for (const uint32_t end = i + more; i < end; code = code << 6 | (text[i++] & 0x3fu))
      if ((text[i] & 0xc0) != 0x80) return false;
    if (code < kLeast[more] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) return false;
  }
  return true;
}
// A rate for its byte, in multiples of 2^-16.
uint64_t Rate(uint8_t code) {
  const uint32_t low = code < 128 ? code : 255u - code;
  const uint32_t rate = low < 16 ? low : std::min((8 + low % 8) << (low / 8 - 1), 32768u);
  return code < 128 ? rate : 65536 - rate;
}
// The entropy coder of docs/pack-format.md.
class Ans {
 public:
  explicit Ans(Bytes words) : words_(words.data), left_(words.size / 4), state_(Next() << 32) {
    state_ = left_ > 0 ? state_ | Next() : state_ >> 32;
  }
  bool IsEmpty() const { return state_ == 0 && left_ == 0; }
  // Sets the rates of the values that follow.
  void SetRates(uint64_t dropped, uint64_t negated) {
    const uint64_t kept = 65536 - dropped, shares[] = {dropped << 16, kept * (65536 - negated), kept * negated};
    const int values = (shares[0] != 0) + (shares[1] != 0) + (shares[2] != 0);
    uint64_t sum = count_ = 0;
    std::fill(starts_, starts_ + 4, 1u << 24);
    for (uint32_t value = 0; value < 3; sum += shares[value++]) {
      if (shares[value] == 0) continue;
      const volatile double start = static_cast<double>(sum) / 4294967296.0 * (16777216 - values);  // Rounded once.
      starts_[count_] = static_cast<uint32_t>(start) + count_;
      values_[count_++] = value;
    }
  }
  // Reads the mask of a filter into bits that are zero; `negated` is null if it is binary.
  void Decode(size_t elements, uint8_t* kept, uint8_t* negated) {
    for (size_t i = 0; i < elements; ++i) {
      const uint32_t value = count_ == 1 ? values_[0] : NextValue();
      kept[i / 8] |= static_cast<uint8_t>((value + 1) / 2 << i % 8);
      if (negated != nullptr) negated[i / 8] |= static_cast<uint8_t>(value / 2 << i % 8);
    }
  }
 private:
  uint64_t Next() { return left_ > 0 ? Load32(words_ + 4 * --left_) : 0; }
  uint32_t NextValue() {
    const uint32_t number = static_cast<uint32_t>(state_ & 0xffffff);
    const uint32_t symbol = (number >= starts_[1] ? 1u : 0u) + (number >= starts_[2] ? 1u : 0u);
    state_ = (state_ >> 24) * (starts_[symbol + 1] - starts_[symbol]) + (number - starts_[symbol]);
    if (state_ >> 32 == 0 && left_ > 0) state_ = state_ << 32 | Next();
    return values_[symbol];
  }
  const uint8_t* words_;
  size_t left_;
  uint64_t state_;
  uint32_t values_[3] = {}, starts_[4] = {}, count_ = 1;
};
float FloatOfHalf(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31u, mantissa = half & 0x3ffu;
  if (exponent == 0) return FloatOf(sign | BitsOf(static_cast<float>(mantissa) * 0x1p-24f));
  return FloatOf(sign | (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13);
}
uint16_t HalfOfFloat(float value) {
  const uint32_t bits = BitsOf(value), size = bits & 0x7fffffff;
  uint32_t half = (size + 0xfff + (size >> 13 & 1) - (112u << 23)) >> 13;
  // Floats from 0.5 on are as far apart as subnormal halves, so that this sum rounds alike.
  if (size < 0x38800000) half = BitsOf(FloatOf(size) + 0.5f) - 0x3f000000;
  if (size >= 0x477ff000) half = size > 0x7f800000 ? 0x7e00 : 0x7bff;  // It would round to infinity, or is no number.
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | half);
}
// Rounded, and in no register that a sum is fused with: the bytes have to be those of every other machine.
float Exact(float value) {
  const volatile float rounded = value;
  return rounded;
}
uint32_t Multiply(uint32_t weight, float ratio) { return BitsOf(FloatOf(weight) * ratio); }
uint16_t Multiply(uint16_t weight, float ratio) { return HalfOfFloat(FloatOfHalf(weight) * ratio); }
uint8_t Multiply(uint8_t weight, float ratio) { return static_cast<uint8_t>(ratio < 0 ? 0u - weight : weight); }
// Multiplies a filter by the ratios of its channels, negates and drops weights; null stands for what is not done.
template <class Word>
void Patch(const Entry& entry, const uint8_t* from, uint8_t* to, const uint8_t* ratios, const uint8_t* kept,
           const uint8_t* negated) {
  constexpr uint32_t kSign = 1u << (8 * sizeof(Word) - 1);
  for (size_t i = 0, channel = 0, left = entry.inner; i < entry.elements; ++i) {
    uint32_t bits = Load<Word>(from + i * sizeof(Word));
    if (ratios != nullptr) {
      bits = Multiply(static_cast<Word>(bits), Load<float>(ratios + 4 * channel));
      if (--left == 0) left = entry.inner, channel = channel + 1 < entry.channels ? channel + 1 : 0;
    }
    if (negated != nullptr) {
      const uint32_t flips = 0u - (negated[i / 8] >> i % 8 & 1u);
      bits = sizeof(Word) == 1 ? (bits ^ flips) - flips : bits ^ (flips & kSign);
    }
    if (kept != nullptr) bits &= 0u - (kept[i / 8] >> i % 8 & 1u);
    const Word word = static_cast<Word>(bits);
    memcpy(to + i * sizeof(Word), &word, sizeof word);
  }
}
// What a filter is made of that is not its base's alone: the content of a correction of kind 3.
struct Composition {
  uint32_t has = 0, rank = 0, columns = 0, inner = 0;
  const uint8_t *numbers = nullptr, *scales = nullptr, *ratios = nullptr, *offsets = nullptr, *down = nullptr,
                *up = nullptr;
  // Returns whether the content is one for this filter, with so many scales, whose numbers are then where they are.
  bool Read(const Entry& entry, uint32_t scale_count, const uint8_t* content, uint64_t length) {
    if (length < 40) return false;
    has = Load32(content), rank = Load32(content + 4), columns = Load32(content + 8), inner = Load32(content + 12);
    const bool product = (has & 4) != 0;
    const uint64_t group = uint64_t{columns} * inner;
    if (has > 7 || (rank > 0) != product || (columns > 0) != product || (inner > 0) != product || rank > kMost ||
        (product && entry.elements % group != 0))
      return false;
    const uint64_t channels = entry.channels, rows = product ? entry.elements / columns : 0;
    const uint64_t factors = uint64_t{rank} * columns;
    const uint64_t counts[] = {6, scale_count, has & 1 ? channels : 0, has & 2 ? channels : 0, rows * rank, factors};
    const uint8_t** const places[] = {&numbers, &scales, &ratios, &offsets, &down, &up};
    uint64_t at = 16;
    for (size_t i = 0; i < 6; ++i) {
      *places[i] = counts[i] > 0 ? content + at : nullptr;
      if (counts[i] > (length - at) / 4) return false;
      at += 4 * counts[i];
    }
    if (at != length || !AreFinite(content + 16, length - 16)) return false;
    for (uint32_t i = 0; i < scale_count; ++i)
      if (!(Load<float>(scales + 4 * i) > 0)) return false;
    return true;
  }
};
// Makes a filter by a composition; `base_scales` are those of a filter of integers.
template <class Word>
void Compose(const Entry& entry, const uint8_t* base_scales, const Composition& made_of, uint32_t scale_count,
             const uint8_t* from, uint8_t* to, const uint8_t* kept, const uint8_t* negated) {
  const auto at = [](const uint8_t* numbers, size_t index) { return Load<float>(numbers + 4 * index); };
  for (size_t i = 0, channel = 0, left = entry.inner; i < entry.elements; ++i) {
    const size_t scale = scale_count > 1 ? channel : 0;
    const Word word = Load<Word>(from + i * sizeof(Word));
    float value;
    if (sizeof(Word) == 1)
      value = Exact(static_cast<float>(static_cast<int8_t>(word)) * at(base_scales, scale));
    else
      value = sizeof(Word) == 2 ? FloatOfHalf(static_cast<uint16_t>(word)) : FloatOf(static_cast<uint32_t>(word));
    size_t place = kept == nullptr ? 1 : kept[i / 8] >> i % 8 & 1u;
    if (negated != nullptr) place += negated[i / 8] >> i % 8 & 1u;
    value = Exact(value * at(made_of.numbers, place));
    float added = at(made_of.numbers, 3 + place);
    if (made_of.ratios != nullptr) value = Exact(value * at(made_of.ratios, channel));
    if (made_of.offsets != nullptr) added = Exact(added * at(made_of.offsets, channel));
    value = Exact(value + added);
    if (made_of.down != nullptr) {
      const size_t column = i / made_of.inner % made_of.columns;
      const size_t row = i / (size_t{made_of.inner} * made_of.columns) * made_of.inner + i % made_of.inner;
      const uint8_t *a = made_of.down + 4 * row * made_of.rank, *b = made_of.up + 4 * column;
      float sum = Exact(at(a, 0) * at(b, 0));
      for (size_t k = 1; k < made_of.rank; ++k)
        sum = Exact(sum + Exact(at(a, k) * at(b, k * made_of.columns)));
      value = Exact(value + sum);
    }
    Word result;
    if (sizeof(Word) == 1) {
      const float number = nearbyintf(Exact(value / at(made_of.scales, scale)));
      const int clipped = number > -127 ? static_cast<int>(number < 127 ? number : 127.0f) : -127;
      result = static_cast<Word>(clipped);
    } else {
      result = static_cast<Word>(sizeof(Word) == 2 ? HalfOfFloat(value) : BitsOf(value));
    }
    memcpy(to + i * sizeof(Word), &result, sizeof result);
    if (--left == 0) left = entry.inner, channel = channel + 1 < entry.channels ? channel + 1 : 0;
  }
}
}  // namespace

Digest Sha256(Bytes bytes) {
  static constexpr uint32_t round[64] = {0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1,
      0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7,
      0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
      0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
      0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
      0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c,
      0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208,
      0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
  uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  const auto turn = [](uint32_t x, int n) { return x >> n | x << (32 - n); };
  const auto add_block = [&](const uint8_t* block) {
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; ++i) w[i] = __builtin_bswap32(Load32(block + 4 * i));
    for (int i = 16; i < 64; ++i)
      w[i] = w[i - 16] + (turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
             (turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ w[i - 2] >> 10);
    std::copy(state, state + 8, s);
    for (int i = 0; i < 64; i += 8)
      for (int k = 0; k < 8; ++k) {  // The letters a to h turn round in s, so that nothing is moved.
        const uint32_t a = s[-k & 7], b = s[(1 - k) & 7], c = s[(2 - k) & 7], e = s[(4 - k) & 7];
        const uint32_t choice = (e & s[(5 - k) & 7]) ^ (~e & s[(6 - k) & 7]), majority = (a & b) ^ (a & c) ^ (b & c);
        const uint32_t t = s[(7 - k) & 7] + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + choice + round[i + k] + w[i + k];
        s[(3 - k) & 7] += t;
        s[(7 - k) & 7] = t + (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + majority;
      }
    for (int i = 0; i < 8; ++i) state[i] += s[i];
  };
  const size_t rest = bytes.size % 64, length = rest < 56 ? 64 : 128;
  for (size_t i = 0; i < bytes.size - rest; i += 64) add_block(bytes.data + i);
  uint8_t last[128] = {};  // The rest, a one, zeros, and the number of bits in the last eight bytes.
  if (rest > 0) memcpy(last, bytes.data + bytes.size - rest, rest);
  last[rest] = 0x80;
  for (size_t i = 0; i < 8; ++i) last[length - 1 - i] = static_cast<uint8_t>(uint64_t{bytes.size} * 8 >> 8 * i);
  for (size_t i = 0; i < length; i += 64) add_block(last + i);
  Digest digest;
  for (size_t i = 0; i < 32; ++i) digest[i] = static_cast<uint8_t>(state[i / 4] >> (24 - i % 4 * 8));
  return digest;
}

uint32_t Manifest::Field(size_t offset) const { return bytes_.size > 0 ? Load32(bytes_.data + offset) : 0; }
Error Manifest::Open(Bytes bytes) {
  const uint8_t* p = bytes.data;
  if (bytes.size < kManifestHeader + kEntry + kDigest || memcmp(p, "PBEDGEMF", 8) != 0 || Load32(p + 8) - 1 > 2)
    return "This is no manifest of version 1, 2 or 3.";
  const uint32_t version = Load32(p + 8), graphs = Load32(p + 120);
  if (Load32(p + 12) > kMostEntries || graphs > kMostSignatures ||
      bytes.size != kManifestHeader + kEntry * Load32(p + 12) + kSignature * graphs + kDigest || Load64(p + 16) != bytes.size || !HasDigest({p, bytes.size - kDigest}, p + bytes.size - kDigest))
    return "The manifest is damaged: it has another length or SHA-256 than it says.";
  Manifest found;
  found.bytes_ = bytes;
  const uint64_t base = found.base_size(), place = found.task_place(), behind = place > 0 ? place + kDigest : 0;
  if (Load64(p + 24) > kMostElements || behind > base || found.features() > kMost || found.max_classes() > kMost ||
      found.quantization() > 3 || !IsZero(p + 116, p + 120) || !IsZero(p + 124, p + kManifestHeader) ||
      (version >= 2) != (place > 0) || (version == 3) != (graphs > 0) || (graphs > 0) == (found.features() > 0) ||
      (graphs > 0 && !IsZero(p + 96, p + 108)))
    return "The manifest is of a model that cannot be.";
  uint64_t end = 0;
  const uint8_t* const behind_entries = p + kManifestHeader + kEntry * found.entries();
  for (p += kManifestHeader; p < behind_entries; p += kEntry) {
    constexpr uint64_t kSizes[] = {0, 4, 2, 1, 4, 8};
    const uint32_t kind = Load32(p), type = Load32(p + 4), channels = Load32(p + 32), count = Load32(p + 56);
    const uint64_t offset = Load64(p + 8), size = Load64(p + 16), elements = Load64(p + 24), scales = Load64(p + 48);
    const uint64_t group = uint64_t{channels} * Load32(p + 36);
    const bool scaled = kind == kFilter && type == kInt8;
    if (kind < kFilter || kind > kHeadBias || type < kFloat32 || type > (kind == kFilter ? kInt8 : kInt64) ||
        group < 1 || elements < 1 || elements > kMostElements || size != elements * kSizes[type] ||
        (scaled ? scales == 0 || (count != 1 && count != channels) : scales != 0 || count != 0) ||
        elements % group != 0 || Load32(p + 44) >= found.signatures() || Load32(p + 60) != 0)
      return "The manifest has a constant of no known kind, or of sizes that do not agree.";
    if (offset < end || offset > base || size > base - offset || scales > base || 4 * uint64_t{count} > base - scales ||
        (offset < behind && offset + size > place))
      return "The manifest has a constant that is not behind the one before, or not within the base.";
    end = offset + size;
  }
  for (uint32_t i = 0; i < graphs; ++i, p += kSignature) {
    const Signature graph = found.signature(i);
    bool good = IsName(p) && IsZero(p + 84, p + kSignature) && graph.height - 1 < kMostSide &&
                graph.width - 1 < kMostSide && graph.room <= kMost && graph.features <= kMost && graph.places >= 1 &&
                uint64_t{graph.places} * std::max(graph.room, 1u) <= kMostOutputs &&
                (graph.room > 0 || (graph.features > 0 && graph.places == 1));
    for (uint32_t k = 0; k < i; ++k) good = good && found.signature(k).name != graph.name;
    if (!good) return "The manifest has a signature that cannot be, or two of one name.";
  }
  *this = found;
  return {};
}
Signature Manifest::signature(uint32_t index) const {
  const uint32_t size = image_size();
  if (Field(120) == 0) return {"serving_default", size, size, max_classes(), features(), 1};
  const uint8_t* p = bytes_.data + kManifestHeader + kEntry * entries() + kSignature * index;
  const std::string_view name(reinterpret_cast<const char*>(p), kNameSize);
  return {name.substr(0, name.find('\0')), Load32(p + 64), Load32(p + 68), Load32(p + 72), Load32(p + 76), Load32(p + 80)};
}
Entry Manifest::entry(uint32_t index) const {
  const uint8_t* p = bytes_.data + kManifestHeader + kEntry * index;  // Sizes are below 2^31, as was checked.
  return {Load32(p), Load32(p + 4), Load32(p + 8), Load32(p + 16), Load32(p + 24), Load32(p + 32), Load32(p + 36)};
}
uint32_t Manifest::scale_offset(uint32_t index) const { return Field(kManifestHeader + kEntry * index + 48); }
uint32_t Manifest::scale_count(uint32_t index) const { return Field(kManifestHeader + kEntry * index + 56); }
Error Manifest::CheckSizes(Bytes base, const uint8_t* copy, size_t size) const {
  const bool good = entries() > 0 && base.data != nullptr && copy != nullptr && base.size == base_size();
  return good && size == base.size ? Error() : "This is not of the size of the manifest's base.";
}
Error Manifest::Verify(Bytes base) const {
  if (Error error = CheckSizes(base, base.data, base.size)) return error;
  return HasDigest(base, bytes_.data + 32) ? Error() : "This is not the manifest's base: its SHA-256 is another.";
}
const uint8_t* Manifest::Installed(Bytes model) const {
  return task_place() > 0 && !CheckSizes(model, model.data, model.size) ? model.data + task_place() : nullptr;
}
Error Manifest::Remove(Bytes base, uint8_t* copy, size_t size) const {
  if (Error error = CheckSizes(base, copy, size)) return error;
  for (uint32_t i = 0; i < entries() && copy != base.data; ++i)
    memcpy(copy + entry(i).offset, base.data + entry(i).offset, entry(i).size);
  if (task_place() > 0 && copy != base.data) memcpy(copy + task_place(), base.data + task_place(), kDigest);
  return {};
}
Bytes Task::Section(size_t number) const {
  const uint8_t* p = bytes_.data + 136 + 16 * number;
  return {bytes_.data + Load32(p), Load32(p + 8)};
}
Error Task::Open(const Manifest& manifest, Bytes bytes) {
  if (manifest.entries() == 0) return "A task is opened with a manifest that is open.";
  Task task;
  task.manifest_ = manifest;
  task.bytes_ = bytes;
  for (const auto read : {&Task::ReadHeader, &Task::ReadMasks, &Task::ReadCorrections, &Task::ReadText})
    if (Error error = (task.*read)()) return error;
  *this = std::move(task);
  return {};
}
Error Task::ReadHeader() {
  const uint8_t* p = bytes_.data;
  const size_t size = bytes_.size;
  if (size < kTaskHeader + kDigest || memcmp(p, "PBEDGETK", 8) != 0 || Load32(p + 8) - 1 > 2)
    return "This is no task of version 1, 2 or 3.";
  if (Load64(p + 16) != size || size > kMostTask || !HasDigest({p, size - kDigest}, p + size - kDigest))
    return "The task is damaged: it has another length or SHA-256 than it says.";
  const bool old = Load32(p + 8) == 1;
  if (memcmp(p + 40, manifest_.bytes_.data + 32, 2 * kDigest) != 0 || Load32(p + 24) != manifest_.entries() ||
      (old && manifest_.Field(120) > 0) || Load32(p + 236) >= manifest_.signatures())
    return "The task is for another base than the manifest.";
  signature_ = manifest_.signature(Load32(p + 236));
  if (Load32(p + 32) != signature_.features || Load32(p + 36) != signature_.height ||
      (old ? Load32(p + 36) : Load32(p + 232)) != signature_.width)
    return "The task is for other images or features than the base.";
  flags_ = Load32(p + 12), classes_ = Load32(p + 28), answer_ = Load32(p + 240), texts_before_ = old ? 4 : 6;
  const uint32_t room = signature_.room, most = answer_ == kArgmax ? kMostLabels : kMost;
  if (flags_ > 15 || ((flags_ & kHeadInside) != 0) != (room > 0) ||
      !IsZero(p + (old ? 232 : 244), p + kTaskHeader) || classes_ < 1 || answer_ > kBoxes ||
      (answer_ != kArgmax && answer_ != kBoxes && signature_.places > 1) ||
      classes_ > (room > 0 ? std::min(room, most) : most))
    return "The task has flags or a number of classes that no task for this base has.";
  uint64_t end = kTaskHeader, begin = end;
  for (size_t i = 0; i <= kParts; ++i, begin = Padded(end)) {  // Behind the sections is the digest.
    const uint64_t length = i < kParts ? Load64(p + 144 + 16 * i) : kDigest, left = size - (i < kParts ? kDigest : 0);
    if (begin > left || length > left - begin || !IsZero(p + end, p + begin) ||
        (i < kParts ? Load64(p + 136 + 16 * i) != begin : begin + length != size))
      return "The task has a section that is not where it should be.";
    end = begin + length;
  }
  const Bytes head = Section(kHead);
  const bool fits = head.size == (room > 0 ? 0 : 4 * uint64_t{classes_} * (signature_.features + 1));
  return fits && AreFinite(head.data, head.size) ? Error() : "The head of the task is of another size, or not finite.";
}
Error Task::ReadMasks() {
  const Bytes masked = Section(kMasked), masks = Section(kMasks), rates = Section(kRates);
  const bool ternary = (flags_ & kTernary) != 0, compressed = (flags_ & kCompressed) != 0;
  const size_t planes = ternary ? 2 : 1;
  size_t size = 0, filters = 0, at = 0, rate = 0;
  if (masked.size != manifest_.entries()) return "The task does not say of each constant whether it has a mask.";
  for (uint32_t i = 0; i < masked.size; ++i) {
    const Entry entry = manifest_.entry(i);
    if (masked.data[i] > (entry.kind == kFilter ? 1 : 0)) return "The task has a mask for what is no filter.";
    if (masked.data[i] == 1) size += planes * ((entry.elements + 7) / 8), ++filters;
  }
  if (rates.size != (compressed ? planes * filters : 0) || (compressed ? masks.size % 4 != 0 : masks.size != size) ||
      (compressed && masks.size > 0 && Load32(masks.data + masks.size - 4) == 0))
    return "The masks of the task are not of the size of its filters, or their code ends in a zero.";
  decoded_.reset(compressed ? new (std::nothrow) uint8_t[size + 1]() : nullptr);
  masks_ = compressed ? decoded_.get() : masks.data;
  if (masks_ == nullptr) return "There is no memory for the masks of the task.";
  Ans ans(compressed ? masks : Bytes());
  for (uint32_t i = 0; i < masked.size; ++i) {
    if (masked.data[i] == 0) continue;
    const size_t elements = manifest_.entry(i).elements, plane = (elements + 7) / 8;
    if (compressed) {
      ans.SetRates(Rate(rates.data[rate]), ternary ? Rate(rates.data[rate + 1]) : 0);
      ans.Decode(elements, decoded_.get() + at, ternary ? decoded_.get() + at + plane : nullptr);
    }
    uint32_t wrong = 0;
    for (size_t k = 0; k < planes && elements % 8 != 0; ++k) wrong |= masks_[at + (k + 1) * plane - 1] >> elements % 8;
    for (size_t k = at; k < at + plane && ternary; ++k) wrong |= masks_[k + plane] & ~uint32_t{masks_[k]};
    if (wrong != 0) return "A mask of the task has bits behind its last weight, or negates what it drops.";
    at += planes * plane, rate += planes;
  }
  if (!ans.IsEmpty()) return "More is compressed than the masks of the task.";
  return HasDigest({masks_, size}, bytes_.data + 104) ? Error() : "The masks of the task have another SHA-256.";
}
Error Task::ReadCorrections() {
  const Bytes section = Section(kCorrections);
  uint32_t found = 0, next = 0, composed = 0;
  for (uint64_t at = 0; at < section.size;) {
    const uint8_t *record = section.data + at, *content = record + kRecord;
    const uint32_t index = Load32(record), kind = Load32(record + 4);  // There are 32 bytes behind all sections.
    const uint64_t length = Load64(record + 8), left = section.size - at;
    if (left < kRecord || index < next || index >= manifest_.entries() || length < 1 || length > left - kRecord ||
        Padded(length) > left - kRecord || !IsZero(content + length, content + Padded(length)))
      return "The task has a correction that is not behind the one before, or longer than its section.";
    const Entry entry = manifest_.entry(index);
    bool good = kind == 2 && length <= entry.size && length % (entry.size / entry.elements) == 0;
    composed += kind == 3;
    if (entry.kind == kFilter && kind == 3)
      good = Composition().Read(entry, manifest_.scale_count(index), content, length);
    else if (entry.kind == kFilter) good = kind == 1 && length == 4 * uint64_t{entry.channels} && AreFinite(content, length);
    for (size_t i = 0; good && i < length && kind == 1 && entry.type == kInt8; i += 4)
      good = fabsf(Load<float>(content + i)) == 1;
    if (!good) return "The task has a correction that its constant cannot have.";
    found |= entry.kind < kHeadKernel ? kOwnNorm : kHeadInside;
    next = index + 1, at += kRecord + Padded(length);
  }
  if ((composed > 0) != (Load32(bytes_.data + 8) == 3)) return "A task composes filters if it is of version 3.";
  return found == (flags_ & (kOwnNorm | kHeadInside)) ? Error() : "The task lacks corrections that its flags promise.";
}
Error Task::ReadText() {
  const Bytes section = Section(kText);
  const size_t count = texts_before_ + size_t{classes_};
  if (count <= section.size / 4) texts_.reset(new (std::nothrow) uint32_t[count]);
  if (texts_ == nullptr) return "The task has fewer labels than classes, or there is no memory for them.";
  size_t at = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint32_t length = section.size - at < 4 ? kMostText + 1 : Load32(section.data + at);
    if (length > kMostText || length > section.size - at - 4 || !IsUtf8(section.data + at + 4, length))
      return "The task has a text that is cut off, too long, or no UTF-8.";
    texts_[i] = static_cast<uint32_t>(at), at += 4 + length;
  }
  uint8_t parts[7 * kDigest], *part = std::copy(bytes_.data + 40, bytes_.data + 136, parts);
  for (const Part each : {kMasked, kHead, kCorrections, kText})
    part = std::copy_n(Sha256(Section(each)).data(), kDigest, part);
  digest_ = Sha256({parts, sizeof parts});
  return at == section.size ? Error() : "The task has more text than its labels.";
}
std::string_view Task::Text(size_t index) const {
  if (texts_ == nullptr) return "";
  const uint8_t* text = Section(kText).data + texts_[index];
  return {reinterpret_cast<const char*>(text + 4), Load32(text)};
}

Error Task::Install(Bytes base, uint8_t* copy, size_t size) const {
  if (Error error = manifest_.CheckSizes(base, copy, size)) return error;
  fenv_t environment;  // Rounding to nearest and subnormal numbers, whatever the thread was set to for inference.
  fegetenv(&environment), fesetenv(FE_DFL_ENV);
  // Composed filters first: they read scales of the base, which may be the copy, and are written for others to come.
  for (const bool composed : {true, false}) WriteEntries(base, copy, composed);
  fesetenv(&environment);
  if (manifest_.task_place() > 0) memcpy(copy + manifest_.task_place(), digest_.data(), kDigest);
  return {};
}
void Task::WriteEntries(Bytes base, uint8_t* copy, bool composed_ones) const {
  const uint8_t *masked = Section(kMasked).data, *mask = masks_, *record = Section(kCorrections).data;
  const uint8_t* const end = record + Section(kCorrections).size;
  for (uint32_t i = 0; i < manifest_.entries(); ++i) {
    const Entry entry = manifest_.entry(i);
    const uint8_t *from = base.data + entry.offset, *content = nullptr, *kept = nullptr, *negated = nullptr;
    uint8_t* to = copy + entry.offset;
    const size_t plane = masked[i] * ((entry.elements + 7) / 8);
    const size_t length = record < end && Load32(record) == i ? Load32(record + 8) : 0;
    const bool composed = length > 0 && Load32(record + 4) == 3;
    if (length > 0) content = record + kRecord, record = content + Padded(length);
    if (plane > 0) kept = mask, negated = flags_ & kTernary ? mask + plane : nullptr;
    mask += flags_ & kTernary ? 2 * plane : plane;
    if (composed != composed_ones) continue;
    if (content == nullptr && kept == nullptr) {
      if (from != to) memcpy(to, from, entry.size);
    } else if (entry.kind != kFilter) {
      memcpy(to, content, length);
      memset(to + length, 0, entry.size - length);
    } else if (composed) {
      Composition made_of;
      const uint32_t scales = manifest_.scale_count(i);
      made_of.Read(entry, scales, content, length);
      (entry.type == kInt8 ? Compose<uint8_t> : entry.type == kFloat16 ? Compose<uint16_t> : Compose<uint32_t>)(
          entry, base.data + manifest_.scale_offset(i), made_of, scales, from, to, kept, negated);
    } else {
      (entry.type == kInt8 ? Patch<uint8_t> : entry.type == kFloat16 ? Patch<uint16_t> : Patch<uint32_t>)(
          entry, from, to, content, kept, negated);
    }
  }
}
Error Task::CheckOutput(bool answers, Bytes model, const float* output, size_t size) const {
  if (!answers) return "The task answers otherwise: see whether it gives probabilities, labels or boxes.";
  const uint8_t* installed = manifest_.task_place() > 0 ? manifest_.Installed(model) : digest_.data();
  if (installed == nullptr || memcmp(installed, digest_.data(), kDigest) != 0)
    return "The task is not the one on the model, which has another or none: install it.";
  if (classes_ == 0 || size != signature_.outputs() || !AreFinite(reinterpret_cast<const uint8_t*>(output), 4 * size))
    return "The model's output is not as many finite numbers as the manifest says.";
  return {};
}
float Task::Logit(const float* output, size_t c) const {
  if (signature_.room > 0) return output[c];
  const uint8_t* head = Section(kHead).data;
  float sum = Load<float>(head + 4 * (size_t{signature_.features} * classes_ + c));
  for (size_t f = 0; f < signature_.features; ++f) sum += output[f] * Load<float>(head + 4 * (f * classes_ + c));
  return sum;
}
Error Task::Labels(Bytes model, const float* output, size_t size, uint8_t* labels) const {
  if (Error error = CheckOutput(finds_labels(), model, output, size)) return error;
  for (size_t place = 0; place < signature_.places; ++place, output += signature_.room) {
    float largest = Logit(output, 0);
    labels[place] = 0;
    for (size_t c = 1; c < classes_; ++c)
      if (const float logit = Logit(output, c); logit > largest)
        largest = logit, labels[place] = static_cast<uint8_t>(c);
  }
  return {};
}
Error Task::CheckPoints(Bytes model, const float* scores, const float* sides, size_t places) const {
  if (Error error = CheckOutput(finds_boxes(), model, scores, places * signature_.room)) return error;
  if (!AreFinite(reinterpret_cast<const uint8_t*>(sides), 16 * places))
    return "The model's output is not as many finite numbers as the manifest says.";
  return {};
}
Error Task::Classify(Bytes model, const float* output, size_t size, float* probabilities) const {
  if (Error error = CheckOutput(!finds_labels() && !finds_boxes(), model, output, size)) return error;
  for (size_t c = 0; c < classes_; ++c) probabilities[c] = Logit(output, c);
  for (size_t c = 0; c < classes_ && answer_ == kSigmoid; ++c) {
    const float power = expf(-fabsf(probabilities[c]));
    probabilities[c] = (probabilities[c] < 0 ? power : 1) / (1 + power);
  }
  if (answer_ == kSigmoid) return {};
  const float largest = *std::max_element(probabilities, probabilities + classes_);
  float sum = 0;
  for (size_t c = 0; c < classes_; ++c) sum += probabilities[c] = expf(probabilities[c] - largest);
  for (size_t c = 0; c < classes_; ++c) probabilities[c] /= sum;
  return {};
}
}  // namespace piggyback
