//! The table that the benchmark prints.

/// One line of it. What a line doesn't have stays empty.
#[derive(Default)]
pub struct Line {
    pub what: String,
    pub measured: String,
    /// What was measured beside it in the same run, with its name.
    pub limit: String,
    /// Measured over limit.
    pub ratio: Option<f64>,
    pub reach: String,
    pub met: Option<bool>,
    /// Of the proxy, microseconds a job.
    pub cpu: Option<f64>,
    /// Of the proxy, KiB.
    pub peak: Option<u64>,
    pub note: String,
}

impl Line {
    fn cells(&self) -> [String; 9] {
        [
            self.what.clone(),
            self.measured.clone(),
            self.limit.clone(),
            self.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            self.reach.clone(),
            self.met.map(|met| if met { "yes" } else { "NO" }.to_owned()).unwrap_or_default(),
            self.cpu.map(|cpu| format!("{cpu:.2} µs")).unwrap_or_default(),
            self.peak.map(|peak| format!("{:.1} MiB", peak as f64 / 1024.0)).unwrap_or_default(),
            self.note.clone(),
        ]
    }
}

/// Prints the lines as a Markdown table whose columns are aligned in the source, too.
pub fn print(lines: &[Line]) {
    let head = ["what", "measured", "beside it", "ratio", "reach", "met", "CPU a job", "peak memory", "notes"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(lines.iter().map(Line::cells));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("| {} |", cells.join(" | "));
        if index == 0 {
            let rules: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
            println!("| {} |", rules.join(" | "));
        }
    }
}

/// A number with a comma at each third digit.
pub fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
