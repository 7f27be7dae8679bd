// Installs tasks on a LiteRT model by patching its constants: docs/edge-format.md in C++17, without dependencies,
// exceptions or global state. A Manifest and a Task look at the bytes that they were opened with, which must neither
// change nor go away while they are used. Unless they are being opened, any number of threads may use them at once.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <array>
#include <memory>
#include <string_view>

namespace piggyback {
// What came of a call: false, or a sentence that says what is wrong. A call that fails changes nothing.
struct [[nodiscard]] Error {
  Error(const char* sentence = nullptr) : message(sentence) {}
  explicit operator bool() const { return message != nullptr; }
  const char* message;
};
// Memory of the caller that is read.
struct Bytes {
  const uint8_t* data = nullptr;
  size_t size = 0;
};
using Digest = std::array<uint8_t, 32>;
Digest Sha256(Bytes bytes);
// A constant of the base that tasks change, as in the document. What is here was checked.
struct Entry {
  uint32_t kind, type;
  size_t offset, size, elements;
  uint32_t channels, inner;
};
// A graph of the base, which answers tasks with one kind of head on images of one size.
struct Signature {
  std::string_view name;  // Its number among all is that of its subgraph.
  uint32_t height, width;
  uint32_t room;      // For how many classes its head is; 0: it ends in features, and tasks hold their heads.
  uint32_t features;  // That a dense head takes; 0 of other heads.
  uint32_t places;    // At how many places of an image it gives logits; 1 if for the image as a whole.
  size_t outputs() const { return room > 0 ? size_t{places} * room : features; }
};

// manifest.bin: where a base has the constants that tasks change.
class Manifest {
 public:
  Error Open(Bytes bytes);
  // Checks size and SHA-256 of base.tflite, which takes far longer than installing: call it once for each base.
  Error Verify(Bytes base) const;
  // The digest of the task on a model, 32 bytes within it, zeros for none; null if bases of version 1 do not say it.
  const uint8_t* Installed(Bytes model) const;
  // Writes the base's constants back into a copy of it, [size], whatever was installed there.
  Error Remove(Bytes base, uint8_t* copy, size_t size) const;
  uint32_t entries() const { return Field(12); }
  Entry entry(uint32_t index) const;  // Index is below entries().
  uint32_t base_size() const { return Field(24); }
  uint32_t signatures() const { return Field(120) > 0 ? Field(120) : 1; }
  Signature signature(uint32_t index) const;  // Index is below signatures().
  // Of versions 1 and 2, which have one signature; of version 3 they are 0.
  uint32_t features() const { return Field(96); }
  uint32_t max_classes() const { return Field(100); }  // 0: the model ends in features, else in so many logits.
  uint32_t image_size() const { return Field(104); }
  uint32_t quantization() const { return Field(108); }  // 0 none, 1 float16, 2 dynamic, 3 int8.
 private:
  friend class Task;
  uint32_t Field(size_t offset) const;
  uint32_t scale_offset(uint32_t index) const;  // Of a filter of integers; of others 0.
  uint32_t scale_count(uint32_t index) const;
  uint32_t task_place() const { return Field(112); }  // Of the digest; 0 in version 1.
  Error CheckSizes(Bytes base, const uint8_t* copy, size_t size) const;
  Bytes bytes_;
};

// A .edge file: what one task changes.
class Task {
 public:
  // Takes memory for compressed masks, two bits for an element of the manifest's filters, and 4 bytes for each string.
  Error Open(const Manifest& manifest, Bytes bytes);
  // Writes the task's constants into a copy of the base, [size], whatever was installed there before. `base` was
  // verified. `copy` may be `base` itself, if nothing was installed there yet; otherwise they must not overlap.
  Error Install(Bytes base, uint8_t* copy, size_t size) const;
  // Turns the output of a model, [signature().outputs()], into probabilities, [classes]. Refuses a model on which is
  // another task or none, unless the base is of version 1; and a task that finds labels.
  Error Classify(Bytes model, const float* output, size_t size, float* probabilities) const;
  // The same for a task that finds a class at each place: into their numbers, [signature().places], which is
  // [height, width] of a label map. Of equal logits the first counts.
  Error Labels(Bytes model, const float* output, size_t size, uint8_t* labels) const;
  // Whether boxes can be chosen of what a model returned: scores, [places, signature().room], and sides, [places, 4],
  // and finite. ChooseBoxes of piggyback_boxes.h chooses them. Refuses as Classify does.
  Error CheckPoints(Bytes model, const float* scores, const float* sides, size_t places) const;
  uint32_t answer() const { return answer_; }  // 0 softmax, 1 argmax, 2 sigmoid, 3 boxes.
  bool finds_labels() const { return answer_ == 1; }
  bool finds_boxes() const { return answer_ == 3; }
  const Signature& signature() const { return signature_; }  // The graph to run; it is valid as long as the manifest.
  const Digest& digest() const { return digest_; }  // What a model says that this task is on; the document defines it.
  uint32_t classes() const { return classes_; }
  uint32_t flags() const { return flags_; }  // 1 ternary, 2 compressed, 4 other constants, 8 the model holds the head.
  // Valid UTF-8 written by strangers: escape it before it is printed. Empty if there is no such label.
  std::string_view name() const { return Text(0); }
  std::string_view augmentation() const { return Text(1); }
  std::string_view base_name() const { return Text(2); }
  std::string_view preprocessing() const { return Text(3); }
  std::string_view problem() const { return texts_before_ > 4 ? Text(4) : "class"; }
  std::string_view head() const { return texts_before_ > 4 ? Text(5) : ""; }  // JSON, as in the task's pack.
  std::string_view label(uint32_t index) const { return index < classes_ ? Text(texts_before_ + size_t{index}) : ""; }
 private:
  Error ReadHeader();
  Error ReadMasks();
  Error ReadCorrections();
  Error ReadText();
  Error CheckOutput(bool answers, Bytes model, const float* output, size_t size) const;
  float Logit(const float* output, size_t c) const;
  void WriteEntries(Bytes base, uint8_t* copy, bool composed_ones) const;
  Bytes Section(size_t number) const;
  std::string_view Text(size_t index) const;
  Manifest manifest_;
  Bytes bytes_;
  Signature signature_ = {};
  uint32_t flags_ = 0, classes_ = 0, answer_ = 0, texts_before_ = 4;
  const uint8_t* masks_ = nullptr;  // In section 1, or decoded.
  std::unique_ptr<uint8_t[]> decoded_;
  Digest digest_ = {};
  std::unique_ptr<uint32_t[]> texts_;  // Where strings begin in section 5.
};
}  // namespace piggyback
