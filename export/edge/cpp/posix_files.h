// Files of the example, for Android and Linux: read at once, written whole or not at all.

#ifndef PIGGYBACK_EDGE_POSIX_FILES_H_
#define PIGGYBACK_EDGE_POSIX_FILES_H_

#include <string>
#include <utility>
#include <vector>

#include "piggyback_edge.h"

namespace piggyback {

// What came of a call: nothing wrong, or a sentence that says what.
struct [[nodiscard]] Status {
  Status() = default;
  Status(Error error) : message(error ? error.message : "") {}
  explicit Status(std::string sentence) : message(std::move(sentence)) {}
  bool ok() const { return message.empty(); }

  std::string message;
};

// Reads a file of at most 2^31 - 1 bytes.
Status ReadFile(const std::string& path, std::vector<uint8_t>* content);

// Writes a file to `path` with ".tmp" behind it, flushes it to the disk (fsync), and renames it over `path`, which is
// flushed, too. When the power fails there is the old file or the new one, and perhaps a temporary one, which the next
// call uses again, so that no room is lost. A file that is replaced keeps its mode; a new one has 0644 without what the
// umask takes away. Another process that writes to the same path meanwhile is told so. What is no file, such as a folder
// or a device, is not replaced.
Status WriteFile(const std::string& path, Bytes content);

// Fails if a file to be written, or its temporary one, is read, by whatever name.
Status CheckTarget(const std::string& path, const std::vector<std::string>& read);

// The same of a model; it fails as well if there is a file that is no model, such as another task.
Status CheckModelTarget(const std::string& path, const std::vector<std::string>& read);

// Writes base.tflite with a task on it to another file, after checking it. The base is only read.
Status InstallFile(const std::string& base_path, const Manifest& manifest, const Task& task, const std::string& path);

}  // namespace piggyback

#endif  // PIGGYBACK_EDGE_POSIX_FILES_H_
