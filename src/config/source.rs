//! Finds the files of a configuration and cuts them into lines that know their place.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::error::{ConfigError, Place};

/// No configuration is larger, bytes; `/dev/zero` is.
const MAX_FILE_SIZE: u64 = 16 << 20;

/// No password file is larger, bytes.
const MAX_PASSWORD_SIZE: u64 = 64 << 10;

/// Files of a folder are read if their name ends so.
const EXTENSIONS: [&str; 2] = ["cfg", "conf"];

/// A line of a configuration file.
#[derive(Debug)]
pub struct Line {
    /// Where it stands.
    pub place: Place,
    /// Without its line end, CRs and the file's byte order mark; what is no UTF-8 has become U+FFFD.
    pub text: String,
    /// The offset in `text` of the first byte that is no UTF-8.
    pub invalid: Option<usize>,
}

/// The files that one `--config` names, each to be read or an error.
///
/// A file is itself. A folder is its `*.cfg` and `*.conf` in order of name, without hidden ones and subfolders; there may
/// be none. A pattern (`*`, `?`, `[...]` in any part of the path) is what it matches, in order of name, as the shell
/// does; there must be one. A file whose name looks like a pattern is a file if it exists.
pub(super) fn find(path: &Path) -> Vec<Result<PathBuf, ConfigError>> {
    let pattern = path.to_string_lossy().contains(['*', '?', '[']);
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => folder(path),
        Ok(_) => vec![Ok(path.to_owned())],
        Err(_) if pattern => {
            let matches = matches(path);
            if matches.is_empty() {
                let message = "no file matches this pattern; quote it so that the shell leaves it alone, \
                               and see that the folder can be read";
                return vec![Err(ConfigError::of_file(path.display(), message))];
            }
            matches.into_iter().flat_map(|path| if path.is_dir() { folder(&path) } else { vec![Ok(path)] }).collect()
        }
        Err(error) => vec![Err(unreadable(path, &error))],
    }
}

fn unreadable(path: &Path, error: &io::Error) -> ConfigError {
    let message = match error.kind() {
        io::ErrorKind::NotFound => "there is no such file; --config names a file, a folder or a pattern".to_owned(),
        _ => format!("can't be read: {}", reason(error)),
    };
    ConfigError::of_file(path.display(), message)
}

/// The system's words without the number that std adds.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

fn folder(path: &Path) -> Vec<Result<PathBuf, ConfigError>> {
    let entries = match names(path) {
        Ok(names) => names,
        Err(error) => return vec![Err(unreadable(path, &error))],
    };
    entries
        .into_iter()
        .map(|name| path.join(name))
        .filter(|file| file.extension().is_some_and(|e| EXTENSIONS.iter().any(|known| e == *known)) && !file.is_dir())
        .map(Ok)
        .collect()
}

/// The names in a folder that are not hidden, sorted by their bytes.
fn names(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        // Editors keep locks and drafts beside the file under such names.
        if !name.as_encoded_bytes().starts_with(b".") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// What a pattern matches, sorted component by component.
fn matches(pattern: &Path) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::new()];
    for component in pattern.components() {
        let part = component.as_os_str().to_string_lossy();
        let is_pattern = matches!(component, Component::Normal(_)) && part.contains(['*', '?', '[']);
        let mut next = Vec::new();
        for base in found {
            if is_pattern {
                let listed = if base.as_os_str().is_empty() { Path::new(".") } else { &base };
                let names = names(listed).unwrap_or_default();
                let matching = names.into_iter().filter(|name| glob(&part, &name.to_string_lossy()));
                next.extend(matching.map(|name| base.join(name)));
            } else {
                next.push(base.join(component));
            }
        }
        found = next;
    }
    found.retain(|path| path.exists());
    found
}

/// Whether a name matches a pattern of `*`, `?`, `[abc]`, `[a-z]`, `[!a-z]`; an unclosed bracket is itself.
fn glob(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut p, mut n) = (0, 0);
    // Where to go on when a character doesn't match: behind the last star, which then takes one more. Earlier stars
    // need no second try, so this is no slower than pattern times name.
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        let step = match pattern.get(p) {
            Some('*') => {
                p += 1;
                retry = Some((p, n));
                continue;
            }
            Some('?') => Some(1),
            Some('[') => match class(&pattern[p..], name[n]) {
                Some((true, length)) => Some(length),
                Some((false, _)) => None,
                None => (name[n] == '[').then_some(1),
            },
            Some(c) => (*c == name[n]).then_some(1),
            None => None,
        };
        match (step, retry) {
            (Some(length), _) => {
                p += length;
                n += 1;
            }
            (None, Some((after_star, start))) => {
                p = after_star;
                n = start + 1;
                retry = Some((p, n));
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Whether a character is in the class that a pattern begins with, and the class's length; none if it isn't closed.
fn class(pattern: &[char], c: char) -> Option<(bool, usize)> {
    let negated = matches!(pattern.get(1), Some('!' | '^'));
    let start = if negated { 2 } else { 1 };
    // A bracket that comes first is a member.
    let end = start + 1 + pattern.get(start + 1..)?.iter().position(|c| *c == ']')?;
    let members = &pattern[start..end];
    let mut found = false;
    let mut i = 0;
    while i < members.len() {
        match members.get(i + 1..i + 3) {
            Some(['-', last]) => {
                found |= (members[i]..=*last).contains(&c);
                i += 3;
            }
            _ => {
                found |= members[i] == c;
                i += 1;
            }
        }
    }
    Some((found != negated, end + 1))
}

/// Reads files, each once however often it is named.
#[derive(Default)]
pub(super) struct Reader {
    seen: HashSet<(u64, u64)>,
}

impl Reader {
    /// A file's lines; none if it was read before, which happens when a file and its folder are both named.
    pub(super) fn read(&mut self, path: &Path) -> Result<Vec<Line>, ConfigError> {
        let unreadable = |error: io::Error| unreadable(path, &error);
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !self.seen.insert((metadata.dev(), metadata.ino())) {
            return Ok(Vec::new());
        }
        let bytes = read_at_most(file, MAX_FILE_SIZE).map_err(unreadable)?;
        let Some(bytes) = bytes else {
            let message = format!("is larger than {} MiB: no configuration", MAX_FILE_SIZE >> 20);
            return Err(ConfigError::of_file(path.display(), message));
        };
        if bytes.contains(&0) {
            return Err(ConfigError::of_file(
                path.display(),
                "is no text file: it should be UTF-8, one `key = value` a line",
            ));
        }
        Ok(lines(path, &bytes))
    }
}

/// None if there is more.
fn read_at_most(file: File, size: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(size + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= size).then_some(bytes))
}

fn lines(path: &Path, bytes: &[u8]) -> Vec<Line> {
    let file = Arc::new(path.to_owned());
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let lines = bytes.split(|b| *b == b'\n').enumerate();
    lines
        .map(|(index, bytes)| {
            let bytes: Vec<u8> = bytes.iter().copied().filter(|b| *b != b'\r').collect();
            let place = Place { file: Arc::clone(&file), line: index + 1 };
            match String::from_utf8(bytes) {
                Ok(text) => Line { place, text, invalid: None },
                Err(error) => {
                    let invalid = Some(error.utf8_error().valid_up_to());
                    Line { place, text: String::from_utf8_lossy(error.as_bytes()).into_owned(), invalid }
                }
            }
        })
        .collect()
}

/// A password and whether everybody on this machine may read its file.
pub(super) struct PasswordFile {
    pub(super) password: Vec<u8>,
    pub(super) world_readable: bool,
}

/// Reads a password file: its content without the line ends at its end.
///
/// # Errors
/// What is wrong, to follow the file's name.
pub(super) fn read_password(path: &Path) -> Result<PasswordFile, String> {
    let unreadable = |error: io::Error| format!("can't be read: {}", reason(&error));
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    let Some(mut password) = read_at_most(file, MAX_PASSWORD_SIZE).map_err(unreadable)? else {
        return Err(format!("is larger than {} KiB: no password", MAX_PASSWORD_SIZE >> 10));
    };
    while password.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
        password.pop();
    }
    if password.is_empty() {
        return Err("is empty: it should hold the password".to_owned());
    }
    Ok(PasswordFile { password, world_readable: metadata.permissions().mode() & 0o004 != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_in_the_shell() {
        for (pattern, name) in [
            ("*.conf", "a.conf"),
            ("*", ""),
            ("a*b*c", "a-b-b-c"),
            ("?.cfg", "ü.cfg"),
            ("[abc].cfg", "b.cfg"),
            ("[a-c][!a-c]", "bd"),
            ("[^x]", "y"),
            ("[]]", "]"),
            ("[a-]", "-"),
            ("a[", "a["),
            ("[0-9]*", "10-local.conf"),
        ] {
            assert!(glob(pattern, name), "{pattern} should match {name}");
        }
        for (pattern, name) in [
            ("*.conf", "a.cfg"),
            ("?", ""),
            ("?", "ab"),
            ("[abc]", "d"),
            ("[!abc]", "a"),
            ("[a-c]", "-"),
            ("a*b", "abc"),
            ("[ab", "a"),
            ("", "a"),
        ] {
            assert!(!glob(pattern, name), "{pattern} should not match {name}");
        }
    }

    #[test]
    fn many_stars_take_no_time() {
        assert!(!glob(&"*a".repeat(100), &"a".repeat(99).replace("aaa", "aab").repeat(50)));
    }

    #[test]
    fn a_byte_order_mark_and_crs_are_ignored_and_lines_counted_from_1() {
        let lines = lines(Path::new("f"), b"\xef\xbb\xbfa\r\n\xe4\nb");
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["a", "\u{fffd}", "b"]);
        assert_eq!(lines.iter().map(|line| line.invalid).collect::<Vec<_>>(), [None, Some(0), None]);
        assert_eq!(lines[2].place.to_string(), "f:3");
    }
}
