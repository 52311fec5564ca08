fn main() {
    let cache = image::Cache::open().unwrap();
    let w: image::jdk::Wanted = std::env::args().nth(1).unwrap().parse().unwrap();
    let t = std::time::Instant::now();
    let jdk = image::Jdk::obtain(&w, &cache, &image::progress::Silent).unwrap();
    println!("{jdk:?} {:?}", t.elapsed());
    let tree = jdk.tree().unwrap();
    let len = image::erofs::write_file(&tree, std::path::Path::new(&std::env::args().nth(2).unwrap()), &|_| {}).unwrap();
    println!("{len} {:?}", t.elapsed());
}
