// Redirects of each kind that a proxy can get wrong.
export default {
  async redirects() {
    return [
      { source: "/old", destination: "/about", permanent: false },
      { source: "/gone/:slug*", destination: "/docs/:slug*", permanent: true },
    ];
  },
};
