//! Finds the files of a configuration and cuts them into lines that know their place.

use std::collections::HashSet;
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::error::{Place, of_file};
use super::pattern::Glob;
use crate::logging::name_missing_folder;

/// No configuration is larger, bytes.
const MAX_FILE_SIZE: u64 = 16 << 20;

/// No password file is larger, bytes.
const MAX_PASSWORD_SIZE: u64 = 64 << 10;

const WILDCARDS: [char; 3] = ['*', '?', '['];

/// Linux's number, but for MIPS and SPARC: there it is another harmless flag, and the check before opening has to do.
const O_NONBLOCK: i32 = 0o4000;

/// A line of a configuration file.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) place: Place,
    /// Without its line end, CRs and the file's byte order mark; what is not UTF-8 has become U+FFFD.
    pub(super) text: String,
    /// The offset in `text` of the first byte that is not UTF-8.
    pub(super) invalid: Option<usize>,
}

/// The files that one `--config` names, each to be read or an error.
///
/// A file is itself. A folder is its `*.cfg` and `*.conf` in order of name, without hidden ones and subfolders; there may
/// be none. A pattern (`*`, `?`, `[...]` in any part of the path) is what it matches, in order of name, as the shell
/// does; there must be one. A file whose name looks like a pattern is a file if it exists.
pub(super) fn find(path: &Path) -> Vec<Result<PathBuf, String>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => folder(path),
        Ok(_) => vec![Ok(path.to_owned())],
        Err(_) if path.to_string_lossy().contains(WILDCARDS) => match matches(path) {
            matches if matches.is_empty() => {
                let message = "no file matches this pattern: quote it so that the shell leaves it alone, and check that \
                               the folder can be read";
                vec![Err(of_file(path.display(), message))]
            }
            matches => matches.iter().flat_map(|path| find(path)).collect(),
        },
        Err(error) => vec![Err(unreadable(path, &error))],
    }
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    let message = match error.kind() {
        io::ErrorKind::NotFound => "there is no such file: --config names a file, a folder or a pattern".to_owned(),
        _ => format!("cannot be read: {}", reason(error)),
    };
    of_file(path.display(), message)
}

/// What to say of an old configuration of the Perl script where the one of this program is missing.
pub(super) fn not_converted(path: &Path, old: &Path) -> String {
    let (path, old) = (path.display(), old.display());
    let message = format!(
        "there is no such file, but a configuration of gearman_proxy.pl is at {old}: convert it with \
         `gearman-proxy-convert {old} > {path}`"
    );
    of_file(path, message)
}

/// The system's words without the number that std adds.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error").map_or(text.as_str(), |(words, _)| words).to_owned()
}

fn folder(path: &Path) -> Vec<Result<PathBuf, String>> {
    match listed(path, |name| name.ends_with(".cfg") || name.ends_with(".conf")) {
        Ok(files) => files.into_iter().filter(|file| !file.is_dir()).map(Ok).collect(),
        Err(error) => vec![Err(unreadable(path, &error))],
    }
}

/// What is in a folder under such names, sorted by their bytes. Not what is hidden: editors keep locks and drafts beside
/// the file under such names.
fn listed(folder: &Path, accepts: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let here = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let mut names = fs::read_dir(here)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.retain(|name| !name.as_encoded_bytes().starts_with(b".") && accepts(&name.to_string_lossy()));
    names.sort();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// What a pattern matches, sorted component by component.
fn matches(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for component in pattern.components() {
        let part = component.as_os_str().to_string_lossy();
        let is_pattern = matches!(component, Component::Normal(_)) && part.contains(WILDCARDS);
        let glob = Glob::new(&part, true);
        let matches = |name: &str| glob.as_ref().is_some_and(|glob| glob.matches(name));
        let below = |base: PathBuf| match is_pattern {
            true => listed(&base, matches).unwrap_or_default(),
            false => vec![base.join(component)],
        };
        found = found.into_iter().flat_map(below).collect();
    }
    found.retain(|path| path.exists());
    found
}

/// Reads a regular file of at most `limit` bytes. A FIFO would make the start wait, and `/dev/zero` has no end.
fn read_regular(path: &Path, limit: u64) -> io::Result<(Vec<u8>, Metadata)> {
    let regular = |metadata: Metadata| match metadata.is_file() {
        true => Ok(metadata),
        false => Err(io::Error::other("it is not a regular file")),
    };
    regular(fs::metadata(path)?)?;
    // What stands there may have changed since: opening must not wait either.
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    let metadata = regular(file.metadata()?)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it is larger than {} KiB", limit >> 10)));
    }
    Ok((bytes, metadata))
}

fn world_readable(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & 0o004 != 0
}

/// A file's lines, and whether others can read it. None if it is among those that were `seen`, which happens when a file
/// and its folder are both named.
pub(super) fn read(path: &Path, seen: &mut HashSet<(u64, u64)>) -> Result<Option<(Vec<Line>, bool)>, String> {
    let (bytes, metadata) = read_regular(path, MAX_FILE_SIZE).map_err(|error| unreadable(path, &error))?;
    if !seen.insert((metadata.dev(), metadata.ino())) {
        return Ok(None);
    }
    if bytes.contains(&0) {
        return Err(of_file(path.display(), "is not a text file: expected UTF-8, one `key = value` a line"));
    }
    Ok(Some((lines(path, &bytes), world_readable(&metadata))))
}

fn lines(path: &Path, bytes: &[u8]) -> Vec<Line> {
    let file = Arc::new(path.to_owned());
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let line = |(index, bytes): (usize, &[u8])| {
        let bytes: Vec<u8> = bytes.iter().copied().filter(|b| *b != b'\r').collect();
        let place = Place { file: Arc::clone(&file), line: index + 1 };
        let invalid = std::str::from_utf8(&bytes).err().map(|error| error.valid_up_to());
        Line { place, text: String::from_utf8_lossy(&bytes).into_owned(), invalid }
    };
    bytes.split(|b| *b == b'\n').enumerate().map(line).collect()
}

/// Reads a password file: its content without the line ends at its end, and whether others can read it.
///
/// # Errors
/// What is wrong, to follow the file's name.
pub(super) fn read_password(path: &str) -> Result<(Vec<u8>, bool), String> {
    let path = Path::new(path);
    let unreadable = |error| format!("cannot be read: {}", reason(&name_missing_folder(path, error)));
    let (mut password, metadata) = read_regular(path, MAX_PASSWORD_SIZE).map_err(unreadable)?;
    let end = password.iter().rposition(|b| !matches!(b, b'\n' | b'\r')).map_or(0, |last| last + 1);
    password.truncate(end);
    if password.is_empty() {
        return Err("is empty: it should hold the password".to_owned());
    }
    Ok((password, world_readable(&metadata)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_and_crs_are_ignored_and_lines_counted_from_1() {
        let lines = lines(Path::new("f"), b"\xef\xbb\xbfa\r\n\xe4\nb");
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["a", "\u{fffd}", "b"]);
        assert_eq!(lines.iter().map(|line| line.invalid).collect::<Vec<_>>(), [None, Some(0), None]);
        assert_eq!(lines[2].place.to_string(), "f:3");
    }
}
