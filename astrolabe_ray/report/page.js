// The videos of a pair play, pause and jump together, so that they can be compared frame by frame.
for (const pair of document.querySelectorAll(".pair")) {
  const videos = [...pair.querySelectorAll("video")];
  for (const video of videos) {
    const others = videos.filter((other) => other !== video);
    const lead = () => others.forEach((other) => {
      const apart = Math.abs(other.currentTime - video.currentTime);
      if (Math.min(apart, video.duration - apart) > 0.1) other.currentTime = video.currentTime;
    });
    video.addEventListener("play", () => others.forEach((other) => other.play().catch(() => {})));
    video.addEventListener("pause", () => others.forEach((other) => other.pause()));
    video.addEventListener("seeking", lead);
    if (video === videos[0]) video.addEventListener("timeupdate", lead);  // decoders drift apart
  }
}
