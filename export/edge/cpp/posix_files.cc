#include "posix_files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

namespace piggyback {
namespace {

constexpr off_t kMostBytes = 0x7fffffff;

// A file that is closed in the end.
struct Descriptor {
  explicit Descriptor(int opened) : number(opened) {}
  ~Descriptor() {
    if (number >= 0) close(number);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  const int number;
};

Status SystemError(const char* what, const std::string& path) {
  return Status(std::string("Cannot ") + what + " '" + path + "': " + strerror(errno) + ".");
}

bool SameFile(const struct stat& a, const struct stat& b) { return a.st_dev == b.st_dev && a.st_ino == b.st_ino; }

bool WriteAll(int file, Bytes content) {
  while (content.size > 0) {
    const ssize_t written = write(file, content.data, std::min<size_t>(content.size, 1u << 30));
    if (written < 0 && errno != EINTR) return false;
    const size_t count = written > 0 ? static_cast<size_t>(written) : 0;
    content = {content.data + count, content.size - count};
  }
  return true;
}

}  // namespace

Status ReadFile(const std::string& path, std::vector<uint8_t>* content) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat found {};
  if (file.number < 0 || fstat(file.number, &found) != 0) return SystemError("read", path);
  if (!S_ISREG(found.st_mode) || found.st_size > kMostBytes)
    return Status("Cannot read '" + path + "': it is no file of at most 2^31 - 1 bytes.");
  content->resize(static_cast<size_t>(found.st_size));
  for (size_t done = 0; done < content->size();) {
    const ssize_t count = read(file.number, content->data() + done, content->size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return SystemError("read", path);
    if (count == 0) return Status("Cannot read '" + path + "': it became shorter meanwhile.");
    done += static_cast<size_t>(count);
  }
  return Status();
}

Status WriteFile(const std::string& path, Bytes content) {
  const std::string temporary = path + ".tmp";
  struct stat found {};
  // A device would be replaced by a file, for everybody on the machine.
  const bool replaced = stat(path.c_str(), &found) == 0;
  if (replaced && !S_ISREG(found.st_mode))
    return Status("Cannot write '" + path + "': what is there is no file.");
  const Descriptor file(open(temporary.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
  if (file.number < 0) return SystemError("write", temporary);
  // Whoever holds the lock owns the temporary file, unless it was renamed before the lock was there.
  struct stat locked {}, named {};
  if (flock(file.number, LOCK_EX | LOCK_NB) != 0 || fstat(file.number, &locked) != 0 ||
      stat(temporary.c_str(), &named) != 0 || !SameFile(locked, named))
    return Status("Cannot write '" + path + "': another process does.");
  if (ftruncate(file.number, 0) != 0 || !WriteAll(file.number, content) ||
      (replaced && fchmod(file.number, found.st_mode & 0777) != 0) || fsync(file.number) != 0 ||
      rename(temporary.c_str(), path.c_str()) != 0) {
    const Status status = SystemError("write", path);
    unlink(temporary.c_str());
    return status;
  }
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const Descriptor opened(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  return opened.number >= 0 && fsync(opened.number) == 0 ? Status() : SystemError("flush", folder);
}

Status CheckTarget(const std::string& path, const std::vector<std::string>& read) {
  struct stat target {}, found {};
  for (const std::string& written : {path, path + ".tmp"}) {
    if (stat(written.c_str(), &target) != 0) continue;
    for (const std::string& each : read)
      if (stat(each.c_str(), &found) == 0 && SameFile(target, found))
        return Status("'" + written + "' is read and never written to; name another target.");
  }
  return Status();
}

Status CheckModelTarget(const std::string& path, const std::vector<std::string>& read) {
  if (Status status = CheckTarget(path, read); !status.ok()) return status;
  struct stat target {};
  if (stat(path.c_str(), &target) != 0 || !S_ISREG(target.st_mode) || target.st_size == 0) return Status();
  char start[8] = {};
  if (FILE* file = fopen(path.c_str(), "rb")) {
    const size_t count = fread(start, 1, sizeof start, file);
    fclose(file);
    // The identifier of TFLite's files stands behind four bytes.
    if (count == sizeof start && memcmp(start + 4, "TFL3", 4) == 0) return Status();
  }
  return Status("'" + path + "' is there already, and is no model; name another target.");
}

Status InstallFile(const std::string& base_path, const Manifest& manifest, const Task& task, const std::string& path) {
  if (Status status = CheckModelTarget(path, {base_path}); !status.ok()) return status;
  std::vector<uint8_t> model;
  if (Status status = ReadFile(base_path, &model); !status.ok()) return status;
  const Bytes base{model.data(), model.size()};
  if (Status status = manifest.Verify(base); !status.ok()) return status;
  if (Status status = task.Install(base, model.data(), model.size()); !status.ok()) return status;
  return WriteFile(path, base);
}

}  // namespace piggyback
