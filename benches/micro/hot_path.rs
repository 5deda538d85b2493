//! The hot path's pure functions, timed. `scripts/instructions` counts the instructions of the same list.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use eventpulse_bench::hot;

fn hot_path(criterion: &mut Criterion) {
    for function in hot::all() {
        // A name such as `parse/300` becomes one line of the group `parse`.
        let (group, size) = function.name.split_once('/').unwrap_or((function.name, "call"));
        let mut group = criterion.benchmark_group(group);
        group.throughput(Throughput::Bytes(function.bytes));
        group.bench_function(size, |bencher| bencher.iter(&function.call));
        group.finish();
    }
}

criterion_group!(benches, hot_path);
criterion_main!(benches);
